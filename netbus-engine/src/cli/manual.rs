//! Completions and manual pages, made from the words of the command line.

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Arguments;
use super::failure::Failure;

/// What the foot of each page says.
const SOURCE: &str = concat!("netbus ", env!("CARGO_PKG_VERSION"));

/// The script that completes `netbus` in a shell.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "netbus", &mut script);
    script
}

/// The manual page of the program or of one verb, in roff.
pub(super) fn page(verb: Option<&str>) -> Result<Vec<u8>, Failure> {
    let mut program = Arguments::command();
    program.build();
    let mut page = Vec::new();
    match verb {
        None => Man::new(program).render(&mut page)?,
        Some(verb) => {
            let command = program
                .find_subcommand(verb)
                .ok_or_else(|| Failure::Usage(format!("There is no verb {verb}. `netbus --help` lists them")))?;
            Man::new(command.clone())
                .title(format!("netbus-{}", command.get_name()))
                .source(SOURCE)
                .render(&mut page)?;
        }
    }
    Ok(page)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn verbs() -> Vec<String> {
        let program = Arguments::command();
        program.get_subcommands().map(|verb| verb.get_name().to_owned()).collect()
    }

    #[test]
    fn the_words_of_the_command_line_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_mentions_each_verb_and_an_example() {
        let help = Arguments::command().render_long_help().to_string();
        for verb in verbs() {
            assert!(help.contains(&format!("\n  {verb} ")), "{verb} is not in:\n{help}");
        }
        assert!(help.contains("netbus subscribe attic/music"));
    }

    #[test]
    fn each_shell_completes_each_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let script = String::from_utf8(completions(shell)).unwrap();
            for verb in verbs() {
                assert!(script.contains(&verb), "{shell} does not know {verb}");
            }
        }
    }

    #[test]
    fn the_program_and_each_verb_have_a_page() {
        let page = |verb: Option<&str>| String::from_utf8(page(verb).unwrap()).unwrap();
        assert!(page(None).contains("Use the devices of one machine at another"));
        for verb in verbs() {
            assert!(page(None).contains(&format!("netbus\\-{verb}(1)")), "{verb}");
            assert!(page(Some(&verb)).contains(&format!(".TH netbus-{verb} 1")), "{verb}");
        }
        assert!(page(Some("publish")).contains("read\\-only"));
    }

    #[test]
    fn a_verb_that_is_not_there_has_no_page() {
        assert!(matches!(page(Some("dance")), Err(Failure::Usage(_))));
    }
}
