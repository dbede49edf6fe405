//! How things look: in colours where that is wanted, and cut to the width of a terminal.

use std::{
    borrow::Cow,
    io::{self, IsTerminal},
};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::{AnsiColor, Style};

/// Whether to use colours.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Appearance")]
pub struct Colors {
    /// Use colours on a terminal (auto), always or never; JSON has none. NO_COLOR and CLICOLOR_FORCE of the environment are followed
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "auto|always|never",
        default_value_t = When::Auto,
        hide_possible_values = true
    )]
    color: When,
    /// Use no colours, as with `--color never` [default: see --color]
    #[arg(long, global = true, conflicts_with = "color")]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum When {
    /// Where somebody sees them
    #[default]
    Auto,
    /// Into files and pipes, too
    Always,
    /// Not at all
    Never,
}

impl Colors {
    /// Whether to use them on that stream.
    pub fn on(self, stream: &impl RawStream) -> bool {
        match (self.no_color, self.color) {
            (true, _) | (false, When::Never) => false,
            (false, When::Always) => true,
            (false, When::Auto) => AutoStream::choice(stream) != ColorChoice::Never,
        }
    }
}

/// What a text is to its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Names of columns.
    Head,
    /// Something failed, or was lost.
    Alarm,
    /// Good to know.
    Aside,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Head => Style::new().bold(),
            Self::Alarm => AnsiColor::Red.on_default(),
            Self::Aside => Style::new().dimmed(),
        }
    }

    /// The text as it is printed.
    pub(super) fn paint(self, text: &str, colored: bool) -> Cow<'_, str> {
        if !colored || self == Self::Plain || text.is_empty() {
            return Cow::Borrowed(text);
        }
        let style = self.style();
        Cow::Owned(format!("{style}{text}{style:#}"))
    }
}

/// What standard output is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    pub(super) colored: bool,
    /// Columns of the terminal as it is now; `None` where there is no terminal, and nothing is cut.
    pub(super) width: Option<fn() -> usize>,
}

impl Look {
    pub(super) fn of(stdout: &io::Stdout, colors: Colors) -> Self {
        Self {
            colored: colors.on(stdout),
            width: stdout.is_terminal().then_some(width as fn() -> usize),
        }
    }

    /// A human looks at it.
    pub(super) fn is_terminal(self) -> bool {
        self.width.is_some()
    }

    /// The same with nothing cut.
    pub(super) fn uncut(self) -> Self {
        Self {
            width: None,
            ..self
        }
    }
}

/// Of the terminal, or as wide as it takes where that does not tell.
fn width() -> usize {
    let size = terminal_size::terminal_size_of(io::stdout());
    size.map_or(usize::MAX, |(width, _)| width.0.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        colors: Colors,
    }

    fn colored(flags: &[&str]) -> bool {
        let cli = Cli::try_parse_from([&["x"], flags].concat()).expect("flags");
        let file = tempfile::tempfile().expect("a file");
        cli.colors.on(&file)
    }

    #[test]
    fn a_file_has_colours_only_if_they_are_asked_for() {
        assert!(!colored(&["--color", "never"]));
        assert!(!colored(&["--no-color"]));
        assert!(colored(&["--color=always"]));
        let both = Cli::try_parse_from(["x", "--no-color", "--color", "always"]);
        assert!(both.is_err_and(|error| error.to_string().contains("cannot be used with")));
    }

    #[test]
    fn a_tone_ends_where_the_text_does() {
        assert_eq!(Tone::Alarm.paint("lost", true), "\u{1b}[31mlost\u{1b}[0m");
        assert_eq!(Tone::Head.paint("POD", true), "\u{1b}[1mPOD\u{1b}[0m");
        for (tone, text, colored) in [
            (Tone::Alarm, "lost", false),
            (Tone::Plain, "lost", true),
            (Tone::Alarm, "", true),
        ] {
            assert_eq!(tone.paint(text, colored), text);
        }
    }
}
