//! Tests of a string.

use globset::{GlobBuilder, GlobSet};

use super::{Invalid, check_text};

/// A test of a whole string.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// Equal to this.
    Exact(String),
    /// Begins with this.
    Prefix(String),
    /// Matches this glob.
    Glob {
        /// It, compiled.
        set: GlobSet,
        /// What it begins with before its first special character.
        literal: String,
    },
}

impl Pattern {
    /// Exactly this string.
    pub(super) fn exact(field: &str, text: &str) -> Result<Self, Invalid> {
        check_text(field, text)?;
        Ok(Self::Exact(text.to_owned()))
    }

    /// Everything that begins with this string.
    pub(super) fn prefix(field: &str, text: &str) -> Result<Self, Invalid> {
        check_text(field, text)?;
        Ok(Self::Prefix(text.to_owned()))
    }

    /// A glob: `*` crosses `/`.
    pub(super) fn glob(field: &str, text: &str) -> Result<Self, Invalid> {
        check_text(field, text)?;
        let compiled = GlobBuilder::new(text)
            .literal_separator(false)
            .backslash_escape(true)
            .build()
            // A set, because a matcher of a single glob panics where the set returns an error.
            .and_then(|glob| GlobSet::new([glob]));
        match compiled {
            Ok(set) => {
                let special = text.find(['*', '?', '[', '{', '\\']);
                let literal = text[..special.unwrap_or(text.len())].to_owned();
                Ok(Self::Glob { set, literal })
            }
            Err(error) => Err(Invalid::new(
                field,
                format!(
                    "`{}` is not a glob: {}; put a backslash before `*`, `?`, `[` and `{{` that stand for themselves",
                    one_line(text),
                    one_line(&error.kind().to_string())
                ),
            )),
        }
    }

    /// The name of an object: exact, or a glob if it has the characters of one.
    pub(super) fn name(field: &str, text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Err(Invalid::new(
                field,
                "is empty, which is nothing's name; leave it out, or use `*` for any name",
            ));
        }
        if text.contains(['*', '?', '[', '{', '\\']) {
            Self::glob(field, text)
        } else {
            Self::exact(field, text)
        }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix),
            Self::Glob { set, .. } => set.is_match(text),
        }
    }

    /// What everything that matches begins with.
    pub(super) fn literal_prefix(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Glob { literal: text, .. } => text,
        }
    }
}

/// The text as a person can be shown it: nothing in it that a terminal takes for an order.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_strings_and_cross_slashes() {
        let table = [
            ("*", "", true),
            ("*", "a/b", true),
            ("/usr/*/ls", "/usr/local/bin/ls", true),
            ("/usr/*/ls", "/usr/ls", false),
            ("/usr/*/ls", "/usr/bin/lsof", false),
            ("*sh", "/bin/sh", true),
            ("*.py", "/app/a.b/run.py", true),
            ("*.py", "/app/run.py/", false),
            ("**/sh", "sh", true),
            ("?at", "cat", true),
            ("?at", "/at", true),
            ("?at", "at", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]x", "dx", true),
            ("{ba,z}sh", "zsh", true),
            ("{ba,z}sh", "sh", false),
            (r"a\*b", "a*b", true),
            (r"a\*b", "axb", false),
            ("kworker/*", "kworker/0:1", true),
            ("naïve*", "naïve-1", true),
        ];
        for (glob, text, expected) in table {
            let pattern = Pattern::glob("g", glob).expect(glob);
            assert_eq!(pattern.matches(text), expected, "{glob} on {text}");
        }
    }

    #[test]
    fn names_are_globs_only_with_the_characters_of_one() {
        let exact = Pattern::name("n", "checkout-1").expect("a name");
        assert!(matches!(exact, Pattern::Exact(_)), "{exact:?}");
        assert!(exact.matches("checkout-1"));
        assert!(!exact.matches("checkout-10"));
        let glob = Pattern::name("n", "checkout-*").expect("a glob");
        assert!(glob.matches("checkout-10"));
        assert!(!glob.matches("pre-checkout-10"));
        let empty = Pattern::name("n", "").expect_err("nothing has this name");
        assert_eq!(
            empty.to_string(),
            "n: is empty, which is nothing's name; leave it out, or use `*` for any name"
        );
    }

    #[test]
    fn a_bad_glob_is_refused_and_never_panics() {
        for glob in ["[a", "{a", "a}", "[z-a]", "{a,{b}", r"a\"] {
            let invalid = Pattern::glob("filter.comm[2].glob", glob).expect_err(glob);
            assert_eq!(invalid.field, "filter.comm[2].glob");
            assert!(
                invalid
                    .problem
                    .starts_with(&format!("`{glob}` is not a glob: ")),
                "{invalid}"
            );
        }
        // Whether these compile is the library's affair; that nothing panics is ours.
        for glob in ["[а-я]", "[^ß]", "{,}", "[]a]", "***", "{{{a}}}"] {
            if let Ok(pattern) = Pattern::glob("g", glob) {
                pattern.matches("я");
            }
        }
    }

    #[test]
    fn a_refusal_is_one_line_whatever_was_given() {
        for glob in ["[a\u{1b}[2J\n", "{a\u{85}", "[z-a]\r\n"] {
            let invalid = Pattern::glob("g", glob).expect_err(glob);
            assert!(!invalid.problem.contains(char::is_control), "{invalid:?}");
        }
        let invalid = Pattern::glob("g", "[a\u{1b}").expect_err("not closed");
        assert!(
            invalid.problem.starts_with(r"`[a\u{1b}` is not"),
            "{invalid}"
        );
    }

    #[test]
    fn overlong_text_is_refused() {
        let at_limit = "a".repeat(1024);
        let over = "a".repeat(1025);
        for parse in [
            Pattern::exact,
            Pattern::prefix,
            Pattern::glob,
            Pattern::name,
        ] {
            assert!(parse("f", &at_limit).is_ok());
            let invalid = parse("f", &over).expect_err("too long");
            assert_eq!(
                invalid.to_string(),
                "f: is 1025 bytes long; 1024 are allowed"
            );
        }
    }
}
