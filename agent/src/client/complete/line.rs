//! The line that is to go on.

use std::ffi::{OsStr, OsString};

use clap::{ArgMatches, FromArgMatches as _};

use crate::client::{arguments, connection::Connection};

/// Words up to the one at the cursor.
#[derive(Clone, Debug)]
pub(super) struct Line(Vec<OsString>);

/// What the words before the cursor say of where names are to be looked for.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) connection: Connection,
    /// None: that of the context, or with `all_namespaces` every one.
    pub(super) namespaces: Vec<String>,
    pub(super) all_namespaces: bool,
}

impl Line {
    /// Of all words and the number of the one at the cursor, which is the last one if nobody says.
    pub(super) fn new(mut words: Vec<OsString>, index: Option<usize>) -> Self {
        let last = words.len().saturating_sub(1);
        let index = index.unwrap_or(last);
        words.truncate(index + 1);
        words.resize(index + 1, OsString::new());
        Self(without_equals(words))
    }

    pub(super) fn words(&self) -> Vec<OsString> {
        self.0.clone()
    }

    pub(super) fn index(&self) -> usize {
        self.0.len() - 1
    }

    pub(super) fn current(&self) -> &OsStr {
        &self.0[self.index()]
    }

    /// `None` before a command, and after one that asks nobody.
    pub(super) fn scope(&self, cli: &clap::Command) -> Option<Scope> {
        let before = &self.0[..self.index()];
        // A flag at the end has its value at the cursor. Without any it would not be what it is by default.
        let with_value = [before, &["x".into()]].concat();
        let either = [before.to_vec(), with_value];
        either.into_iter().find_map(|words| scope(cli, words))
    }
}

fn scope(cli: &clap::Command, words: Vec<OsString>) -> Option<Scope> {
    let words = arguments(words.into_iter());
    // The line is not complete: what is wrong with it now says nothing.
    let parsed = cli.clone().ignore_errors(true).try_get_matches_from(words);
    let parsed = parsed.ok()?;
    let (_, command) = parsed.subcommand()?;
    command.try_contains_id("kube").ok()?;
    Some(Scope {
        connection: Connection::from_arg_matches(command).ok()?,
        namespaces: texts(command, "namespace"),
        all_namespaces: texts(command, "all_namespaces") == ["true"],
    })
}

/// bash takes `--flag=value` for three words.
fn without_equals(words: Vec<OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::with_capacity(words.len());
    let count = words.len();
    for (number, word) in words.into_iter().enumerate() {
        let after_flag = joined
            .last()
            .is_some_and(|flag| flag.as_encoded_bytes().starts_with(b"--"));
        if word == "=" && after_flag && number + 1 < count {
            continue;
        }
        joined.push(word);
    }
    joined
}

/// The values of an argument as they were given; none if this command does not know it.
fn texts(command: &ArgMatches, id: &str) -> Vec<String> {
    let values = command.try_get_raw(id).ok().flatten();
    let texts = values
        .into_iter()
        .flatten()
        .map(|value| value.to_string_lossy().into_owned());
    texts.collect()
}
