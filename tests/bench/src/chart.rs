//! Throughput over time as a picture (SVG), on a background of its own so that it is legible on any page.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
/// Where the plot lies in the picture.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 736.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 286.0;
/// The most horizontal grid lines above zero.
const MOST_STEPS: f64 = 5.0;

/// What is drawn.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) subtitle: String,
    /// How long it goes on.
    pub(crate) seconds: f64,
    pub(crate) line: Line,
    /// A stretch of time that is shaded, with what it is.
    pub(crate) band: (f64, f64, &'static str),
}

/// Bytes per second in intervals of equal length that fill the time.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) colour: &'static str,
    pub(crate) rates: Vec<f64>,
}

impl Chart {
    /// The picture's source.
    pub(crate) fn svg(&self) -> String {
        let (top, step) = self.scale();
        let unit = if top >= 2e9 { ("GB/s", 1e9) } else { ("MB/s", 1e6) };
        let body = [self.band(), self.grid(top, step, unit), self.curve(top), self.heading()].concat();
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"13\" role=\"img\">\n<title>{}</title>\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\" fill=\"#ffffff\"/>\n{body}</svg>\n",
            escaped(&self.title)
        )
    }

    /// The highest rate of the axis and the distance of its grid lines: a power of ten, or its double or fivefold.
    fn scale(&self) -> (f64, f64) {
        let highest = self.line.rates.iter().fold(1.0_f64, |most, rate| most.max(*rate));
        let power = 10_f64.powf((highest / MOST_STEPS).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = steps.into_iter().find(|step| highest / step <= MOST_STEPS).unwrap_or(highest);
        ((highest / step).ceil() * step, step)
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * seconds / self.seconds
    }

    fn y(rate: f64, top: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * rate / top
    }

    fn heading(&self) -> String {
        format!(
            "<text x=\"20\" y=\"30\" fill=\"#33415c\" font-size=\"16\" font-weight=\"600\">{}</text>\n\
             <text x=\"20\" y=\"51\" fill=\"#5b6b88\">{}</text>\n\
             <text x=\"{RIGHT}\" y=\"{}\" text-anchor=\"end\" fill=\"{}\" font-weight=\"600\">{}</text>\n",
            escaped(&self.title),
            escaped(&self.subtitle),
            TOP - 13.0,
            self.line.colour,
            escaped(self.line.name)
        )
    }

    fn band(&self) -> String {
        let (from, to, name) = self.band;
        let (x, width) = (self.x(from), self.x(to) - self.x(from));
        format!(
            "<rect x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{}\" fill=\"#e5e9f2\"/>\n\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#33415c\">{}</text>\n",
            BOTTOM - TOP,
            x + width / 2.0,
            TOP + 20.0,
            escaped(name)
        )
    }

    fn grid(&self, top: f64, step: f64, (unit, divisor): (&str, f64)) -> String {
        let mut text = String::from("<g fill=\"#5b6b88\">\n");
        put(&mut text, format_args!("<text x=\"20\" y=\"{}\">{unit}</text>\n", TOP - 13.0));
        let mut rate = 0.0;
        while rate <= top + step / 2.0 {
            let (y, colour) = (Self::y(rate, top), if rate == 0.0 { "#33415c" } else { "#d6dce8" });
            put(&mut text, format_args!("<path d=\"M{LEFT} {y:.1} H{RIGHT}\" stroke=\"{colour}\"/>\n"));
            let (x, y, label) = (LEFT - 8.0, y + 4.5, short(rate / divisor));
            put(&mut text, format_args!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>\n"));
            rate += step;
        }
        let (step, mut seconds) = (if self.seconds > 12.0 { 2.0 } else { 1.0 }, 0.0);
        while seconds <= self.seconds {
            let (x, y) = (self.x(seconds), BOTTOM + 19.0);
            put(&mut text, format_args!("<path d=\"M{x:.1} {BOTTOM} v4\" stroke=\"#33415c\"/>\n"));
            put(&mut text, format_args!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{seconds}</text>\n"));
            seconds += step;
        }
        let (x, y) = (f64::midpoint(LEFT, RIGHT), BOTTOM + 40.0);
        put(&mut text, format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">seconds</text>\n</g>\n"));
        text
    }

    fn curve(&self, top: f64) -> String {
        let Line { colour, rates, .. } = &self.line;
        let count = f64::from(u32::try_from(rates.len()).unwrap_or(u32::MAX)).max(1.0);
        let (mut path, mut middle) = (String::new(), self.seconds / count / 2.0);
        for rate in rates {
            let command = if path.is_empty() { 'M' } else { 'L' };
            put(&mut path, format_args!("{command}{:.1} {:.1}", self.x(middle), Self::y(*rate, top)));
            middle += self.seconds / count;
        }
        format!(
            "<path d=\"{path}\" stroke=\"{colour}\" fill=\"none\" stroke-width=\"1.8\" stroke-linejoin=\"round\"/>\n"
        )
    }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Nothing that is written to a text can fail.
    text.write_fmt(what).unwrap_or_default();
}

/// A number of the axis, without decimals that say nothing.
fn short(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(rates: &[f64]) -> Chart {
        Chart {
            title: "Reading & writing".to_owned(),
            subtitle: "a < b".to_owned(),
            seconds: 4.0,
            line: Line { name: "read", colour: "#2563eb", rates: rates.to_vec() },
            band: (1.0, 2.0, "pulled"),
        }
    }

    #[test]
    fn the_axis_ends_at_a_round_number_above_the_highest_rate() {
        assert_eq!(chart(&[0.0, 730e6]).scale(), (800e6, 200e6));
        assert_eq!(chart(&[1.3e9]).scale(), (1.5e9, 0.5e9));
        assert_eq!(chart(&[90.0]).scale(), (100.0, 20.0));
        assert_eq!(chart(&[]).scale().0, 1.0);
    }

    #[test]
    fn a_line_goes_through_the_middle_of_each_interval() {
        let svg = chart(&[0.0, 500e6]).svg();
        // The plot is 672 wide, so the middles of two halves are 168 from its sides; 500 MB/s is the top.
        assert!(svg.contains("M232.0 286.0L568.0 84.0"), "{svg}");
        assert!(svg.contains(">500</text>") && svg.contains(">MB/s</text>"), "{svg}");
    }

    #[test]
    fn the_band_is_where_its_time_is_and_texts_are_escaped() {
        let svg = chart(&[1.0]).svg();
        assert!(svg.contains("<rect x=\"232.0\" y=\"84\" width=\"168.0\""), "{svg}");
        assert!(svg.contains("Reading &amp; writing") && svg.contains("a &lt; b"), "{svg}");
    }
}
