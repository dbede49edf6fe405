//! Label selectors in Kubernetes syntax: `app=checkout,tier in (web,api),!canary`.

use std::{collections::HashMap, iter::Peekable, str::CharIndices};

/// Characters of a label's value, and of its key's last part.
const NAME_CHARS_MAX: usize = 63;
/// Characters of a key's first part, the DNS name before the `/`.
const PREFIX_CHARS_MAX: usize = 253;

/// Labels match when every requirement does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    /// The key is there and has one of these values.
    In(Vec<String>),
    /// The key is missing, or has none of these values.
    NotIn(Vec<String>),
}

impl Labels {
    /// Reads a selector. The error is one sentence that says where it went wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::new(text);
        let mut requirements = Vec::new();
        if parser.peek()? == Token::End {
            return Ok(Self(requirements));
        }
        loop {
            requirements.push(parser.requirement()?);
            match parser.next()? {
                (_, Token::End) => return Ok(Self(requirements)),
                (_, Token::Comma) => {}
                (at, other) => {
                    return Err(format!(
                        "found {other} at byte {at} where `,` or the end should be"
                    ));
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn matches(&self, labels: &HashMap<String, String>) -> bool {
        self.0.iter().all(|Requirement { key, test }| {
            let value = labels.get(key);
            match test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Equals,
    NotEquals,
    Not,
    Open,
    Close,
    Comma,
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Equals => f.write_str("`=`"),
            Self::NotEquals => f.write_str("`!=`"),
            Self::Not => f.write_str("`!`"),
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
            Self::Comma => f.write_str("`,`"),
            Self::End => f.write_str("the end"),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    peeked: Option<(usize, Token)>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            chars: text.char_indices().peekable(),
            peeked: None,
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (at, token) = self.next()?;
        match token {
            Token::Not => {
                let (at, token) = self.next()?;
                let Token::Word(key) = token else {
                    return Err(format!(
                        "found {token} at byte {at} where a key should be, as in `!canary`"
                    ));
                };
                let key = check_key(key)?;
                let test = Test::Absent;
                Ok(Requirement { key, test })
            }
            Token::Word(key) => {
                let key = check_key(key)?;
                let test = self.test()?;
                Ok(Requirement { key, test })
            }
            other @ (Token::Equals
            | Token::NotEquals
            | Token::Open
            | Token::Close
            | Token::Comma
            | Token::End) => Err(format!(
                "found {other} at byte {at} where a key should be, as in `app=checkout`"
            )),
        }
    }

    fn test(&mut self) -> Result<Test, String> {
        match self.peek()? {
            Token::End | Token::Comma => Ok(Test::Exists),
            Token::Equals => {
                self.next()?;
                Ok(Test::In(vec![self.value()?]))
            }
            Token::NotEquals => {
                self.next()?;
                Ok(Test::NotIn(vec![self.value()?]))
            }
            Token::Word(word) if word == "in" => {
                self.next()?;
                Ok(Test::In(self.values()?))
            }
            Token::Word(word) if word == "notin" => {
                self.next()?;
                Ok(Test::NotIn(self.values()?))
            }
            other @ (Token::Word(_) | Token::Not | Token::Open | Token::Close) => {
                let (at, _) = self.next()?;
                Err(format!(
                    "found {other} at byte {at} where `=`, `!=`, `in`, `notin`, `,` or the end should be"
                ))
            }
        }
    }

    /// A value, which may be empty: `app=` asks for the empty one.
    fn value(&mut self) -> Result<String, String> {
        match self.peek()? {
            Token::Word(word) => {
                self.next()?;
                check_value(word)
            }
            Token::End | Token::Comma | Token::Close => Ok(String::new()),
            other @ (Token::Equals | Token::NotEquals | Token::Not | Token::Open) => {
                let (at, _) = self.next()?;
                Err(format!(
                    "found {other} at byte {at} where a value should be"
                ))
            }
        }
    }

    /// Values in parentheses.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let (at, token) = self.next()?;
        if token != Token::Open {
            return Err(format!(
                "found {token} at byte {at} where `(` should be, as in `tier in (web,api)`"
            ));
        }
        if self.peek()? == Token::Close {
            return Err(format!(
                "the parentheses at byte {at} are empty; name at least one value"
            ));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            match self.next()? {
                (_, Token::Close) => return Ok(values),
                (_, Token::Comma) => {}
                (at, other) => {
                    return Err(format!(
                        "found {other} at byte {at} where `,` or `)` should be"
                    ));
                }
            }
        }
    }

    fn peek(&mut self) -> Result<Token, String> {
        let token = match self.peeked.take() {
            Some(token) => token,
            None => self.lex()?,
        };
        Ok(self.peeked.insert(token).1.clone())
    }

    fn next(&mut self) -> Result<(usize, Token), String> {
        match self.peeked.take() {
            Some(token) => Ok(token),
            None => self.lex(),
        }
    }

    fn lex(&mut self) -> Result<(usize, Token), String> {
        while self
            .chars
            .next_if(|(_, c)| c.is_ascii_whitespace())
            .is_some()
        {}
        let Some((at, first)) = self.chars.next() else {
            return Ok((self.text.len(), Token::End));
        };
        let token = match first {
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '=' => {
                self.chars.next_if(|(_, c)| *c == '=');
                Token::Equals
            }
            '!' if self.chars.next_if(|(_, c)| *c == '=').is_some() => Token::NotEquals,
            '!' => Token::Not,
            c if is_word(c) => {
                while self.chars.next_if(|(_, c)| is_word(*c)).is_some() {}
                let end = self.chars.peek().map_or(self.text.len(), |(end, _)| *end);
                Token::Word(self.text[at..end].to_owned())
            }
            '"' | '\'' => {
                return Err(format!(
                    "found a quote at byte {at}; values are written without quotes"
                ));
            }
            '<' | '>' => {
                return Err(format!(
                    "found `{first}` at byte {at}; comparing numbers is not supported, use `in`"
                ));
            }
            other => {
                return Err(format!(
                    "found `{}` at byte {at}, which no key or value can have",
                    other.escape_default()
                ));
            }
        };
        Ok((at, token))
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')
}

fn check_key(key: String) -> Result<String, String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key.as_str()),
    };
    let prefix_fits = prefix.is_none_or(|prefix| {
        !prefix.is_empty()
            && prefix.len() <= PREFIX_CHARS_MAX
            && prefix.split('.').all(|part| {
                begins_and_ends_well(part)
                    && part
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            })
    });
    if prefix_fits && is_name(name) {
        Ok(key)
    } else {
        Err(format!(
            "`{key}` cannot be a label's key; \
             a key is a name of at most {NAME_CHARS_MAX} characters, if need be after a DNS name and `/`"
        ))
    }
}

fn check_value(value: String) -> Result<String, String> {
    if is_name(&value) {
        Ok(value)
    } else {
        Err(format!(
            "`{value}` cannot be a label's value; a value has at most {NAME_CHARS_MAX} letters, digits, \
             `-`, `_` and `.`, and begins and ends with a letter or a digit"
        ))
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_CHARS_MAX && begins_and_ends_well(name) && !name.contains('/')
}

fn begins_and_ends_well(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: [(&str, &[(&str, &str)]); 4] = [
        ("web", &[("app", "checkout"), ("tier", "web")]),
        (
            "api",
            &[("app", "checkout"), ("tier", "api"), ("canary", "")],
        ),
        ("db", &[("app", "store"), ("example.com/team", "data")]),
        ("bare", &[]),
    ];

    fn matching(text: &str) -> Vec<&'static str> {
        let labels = Labels::parse(text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
        PODS.iter()
            .filter(|(_, pairs)| {
                let map = pairs
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect();
                labels.matches(&map)
            })
            .map(|(name, _)| *name)
            .collect()
    }

    #[test]
    fn selectors_mean_what_they_mean_in_kubernetes() {
        let table: &[(&str, &[&str])] = &[
            ("", &["web", "api", "db", "bare"]),
            ("  ", &["web", "api", "db", "bare"]),
            ("app=checkout", &["web", "api"]),
            ("app==checkout", &["web", "api"]),
            (" app = checkout , tier = web ", &["web"]),
            ("app!=checkout", &["db", "bare"]),
            ("tier in (web,api)", &["web", "api"]),
            ("tier in ( web )", &["web"]),
            ("tier notin (web)", &["api", "db", "bare"]),
            ("tier,tier notin (web)", &["api"]),
            ("canary", &["api"]),
            ("!canary", &["web", "db", "bare"]),
            ("! canary", &["web", "db", "bare"]),
            ("canary=", &["api"]),
            ("canary!=", &["web", "db", "bare"]),
            ("canary in (,x)", &["api"]),
            ("app=checkout,tier in (web,api),!canary", &["web"]),
            ("example.com/team=data", &["db"]),
            ("app=in", &[]),
            ("app in (in,notin,store)", &["db"]),
            ("app=checkout,app=store", &[]),
        ];
        for (text, expected) in table {
            assert_eq!(matching(text), *expected, "{text}");
        }
    }

    #[test]
    fn a_refusal_says_where_and_what() {
        let table = [
            (
                "app=checkout,",
                "found the end at byte 13 where a key should be, as in `app=checkout`",
            ),
            (
                ",app",
                "found `,` at byte 0 where a key should be, as in `app=checkout`",
            ),
            (
                "=x",
                "found `=` at byte 0 where a key should be, as in `app=checkout`",
            ),
            (
                "!",
                "found the end at byte 1 where a key should be, as in `!canary`",
            ),
            ("!a=b", "found `=` at byte 2 where `,` or the end should be"),
            (
                "a b",
                "found `b` at byte 2 where `=`, `!=`, `in`, `notin`, `,` or the end should be",
            ),
            (
                "a!",
                "found `!` at byte 1 where `=`, `!=`, `in`, `notin`, `,` or the end should be",
            ),
            (
                "a=b c",
                "found `c` at byte 4 where `,` or the end should be",
            ),
            ("a=b)", "found `)` at byte 3 where `,` or the end should be"),
            ("a=)", "found `)` at byte 2 where `,` or the end should be"),
            ("a=!b", "found `!` at byte 2 where a value should be"),
            ("a===b", "found `=` at byte 3 where a value should be"),
            (
                "a in b",
                "found `b` at byte 5 where `(` should be, as in `tier in (web,api)`",
            ),
            (
                "a in ()",
                "the parentheses at byte 5 are empty; name at least one value",
            ),
            (
                "a in (b",
                "found the end at byte 7 where `,` or `)` should be",
            ),
            (
                "a in (b c)",
                "found `c` at byte 8 where `,` or `)` should be",
            ),
            (
                "a='b'",
                "found a quote at byte 2; values are written without quotes",
            ),
            (
                "a>1",
                "found `>` at byte 1; comparing numbers is not supported, use `in`",
            ),
            (
                "ä=b",
                "found `\\u{e4}` at byte 0, which no key or value can have",
            ),
            (
                "a=b\u{1b}",
                "found `\\u{1b}` at byte 3, which no key or value can have",
            ),
            (
                "a=-b",
                "`-b` cannot be a label's value; a value has at most 63 letters, digits, `-`, `_` and `.`, \
                 and begins and ends with a letter or a digit",
            ),
            (
                "a/b/c",
                "`a/b/c` cannot be a label's key; a key is a name of at most 63 characters, \
                 if need be after a DNS name and `/`",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(Labels::parse(text), Err(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn lengths_are_those_of_kubernetes() {
        let fits = "a".repeat(63);
        let over = "a".repeat(64);
        assert!(Labels::parse(&format!("{fits}={fits}")).is_ok());
        assert!(Labels::parse(&format!("k={over}")).is_err());
        assert!(Labels::parse(&over).is_err());
        assert!(Labels::parse("/a").is_err());
        assert!(Labels::parse("Example.com/a").is_err());
    }

    #[test]
    fn any_text_is_read_or_refused() {
        // Pieces of the grammar in all orders of three, and every prefix of a long selector.
        let pieces = [
            "a", "b/c", "=", "!=", "!", "in", "notin", "(", ")", ",", " ", "é", "\"",
        ];
        let mut read = 0;
        for one in pieces {
            for two in pieces {
                for three in pieces {
                    read += usize::from(Labels::parse(&format!("{one}{two}{three}")).is_ok());
                }
            }
        }
        assert!(read > 0, "some of them are selectors");
        let long = "app=checkout,tier in (web,api),x notin (y),!canary,exists";
        for end in 0..=long.len() {
            let _ = Labels::parse(&long[..end]);
        }
    }
}
