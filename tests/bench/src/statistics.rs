//! The numbers of several rounds: their median, and how far apart they are.

/// What one program did in one kind of work, one number a round.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// Adds the number of one more round.
    pub(crate) fn add(&mut self, number: f64) {
        self.0.push(number);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle number, or the mean of the two in the middle; none without numbers.
    pub(crate) fn median(&self) -> Option<f64> {
        let (half, is_even) = (self.0.len() / 2, self.0.len().is_multiple_of(2));
        let upper = self.0.get(half)?;
        if !is_even {
            return Some(*upper);
        }
        Some(f64::midpoint(*self.0.get(half.checked_sub(1)?)?, *upper))
    }

    /// The least and the greatest number.
    pub(crate) fn spread(&self) -> Option<(f64, f64)> {
        Some((*self.0.first()?, *self.0.last()?))
    }

    /// How many rounds there were.
    pub(crate) fn rounds(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(numbers: I) -> Self {
        let mut sample = Self::default();
        for number in numbers {
            sample.add(number);
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_number_whatever_the_order_of_the_rounds() {
        assert_eq!(Sample::from_iter([9.0, 1.0, 5.0]).median(), Some(5.0));
        assert_eq!(Sample::from_iter([4.0]).median(), Some(4.0));
    }

    #[test]
    fn the_median_of_an_even_number_of_rounds_lies_between_the_two_in_the_middle() {
        assert_eq!(Sample::from_iter([100.0, 2.0, 4.0, 0.0]).median(), Some(3.0));
    }

    #[test]
    fn a_sample_without_rounds_has_neither_median_nor_spread() {
        assert_eq!(Sample::default().median(), None);
        assert_eq!(Sample::default().spread(), None);
    }

    #[test]
    fn the_spread_goes_from_the_least_to_the_greatest() {
        let sample = Sample::from_iter([3.0, 1.0, 2.0]);
        assert_eq!((sample.spread(), sample.rounds()), (Some((1.0, 3.0)), 3));
    }
}
