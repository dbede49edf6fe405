//! How a line may go on: for shells, and for kubectl, which asks for its plugin.
//!
//! Whoever presses Tab wants names, not reasons: what cannot be found out in time is left out, without a word.

mod line;
mod names;
#[cfg(test)]
mod tests;

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap_complete::{
    CompletionCandidate, Shell,
    engine::complete as candidates,
    env::{EnvCompleter, Shells},
};

use super::PLUGIN;
use line::Line;

/// The name by which kubectl finds whoever completes its plugin: this program again. It gives the words of the line as arguments.
const FOR_KUBECTL: &str = "kubectl_complete-dinle";
/// Names the shell that asks. What the scripts call sets it.
const VARIABLE: &str = "_DINLE_COMPLETE";
/// In which word the cursor is, as the scripts of bash and zsh tell it. That of fish ends the line there.
const INDEX: &str = "_CLAP_COMPLETE_INDEX";

/// Directives of Cobra, which kubectl passes on to the shell: no names of files, and no space behind.
const NO_FILES: u8 = 4;
const NO_SPACE: u8 = 2;

/// Answers whoever completes a line, if that is what this process was started for.
pub fn complete(cli: fn() -> clap::Command, arguments: &[OsString]) -> Option<ExitCode> {
    let program = arguments.first().map(Path::new).and_then(Path::file_name)?;
    let shell = env::var(VARIABLE).ok();
    let answered = if program == FOR_KUBECTL {
        for_kubectl(cli(), arguments.get(1..).unwrap_or_default())
    } else {
        for_shell(cli(), arguments, &shell?)?
    };
    // Nothing may be said about it.
    let written = io::stdout().write_all(answered.as_bytes());
    Some(match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// Prints the script with which a shell completes this program, which was started by that name.
pub fn register(shell: Shell, program: Option<&OsStr>, out: &mut dyn Write) -> io::Result<()> {
    let program = Path::new(program.unwrap_or(OsStr::new("dinle")));
    let name = program.file_name().unwrap_or(program.as_os_str());
    let name = name.to_string_lossy();
    // By its path, if that is how it was started: it need not be on the PATH.
    let path = match program.components().count() {
        1 => program.to_owned(),
        _ => env::current_dir()?.join(program),
    };
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string());
    let completer = completer.ok_or_else(|| io::Error::other(format!("{shell} is not known")))?;
    completer.write_registration(VARIABLE, &name, &name, &path.to_string_lossy(), out)
}

/// What a shell's script wants to read.
fn for_shell(cli: clap::Command, arguments: &[OsString], shell: &str) -> Option<String> {
    let shells = Shells::builtins();
    let shell: &dyn EnvCompleter = shells.completer(shell)?;
    let words = arguments.iter().position(|argument| argument == "--")?;
    let words = arguments.get(words + 1..).unwrap_or_default().to_vec();
    let told = env::var(INDEX).ok().and_then(|index| index.parse().ok());
    let line = Line::new(words, told);
    // The cursor's word is the last: the adapters find it there, whatever they are told.
    let mut cli = names::attach(cli, &line);
    let mut written = Vec::new();
    shell
        .write_complete(&mut cli, line.words(), None, &mut written)
        .ok()?;
    String::from_utf8(written).ok()
}

/// What kubectl wants to read: a value a line, what it is about behind a tab, and a directive at the end.
fn for_kubectl(cli: clap::Command, words: &[OsString]) -> String {
    let mut all = vec![OsString::from(PLUGIN)];
    all.extend_from_slice(words);
    if words.is_empty() {
        all.push(OsString::new());
    }
    let line = Line::new(all, None);
    let current = line.current().to_string_lossy().into_owned();
    let mut cli = names::attach(cli, &line);
    let found = candidates(&mut cli, line.words(), line.index(), None);
    cobra(&current, &found.unwrap_or_default())
}

fn cobra(current: &str, found: &[CompletionCandidate]) -> String {
    // It knows the flag itself, and wants its value alone.
    let flag = match current.find('=') {
        Some(at) if current.starts_with('-') => &current[..=at],
        _ => "",
    };
    let mut lines = String::new();
    let mut directive = NO_FILES;
    for candidate in found {
        let value = candidate.get_value().to_string_lossy();
        // Flags are for those who begin one, as with kubectl's own commands.
        if value.starts_with('-') && !current.starts_with('-') {
            continue;
        }
        let value = value.strip_prefix(flag).unwrap_or(&value);
        if value.ends_with(['=', '/']) {
            directive = NO_FILES | NO_SPACE;
        }
        lines.push_str(value);
        let help = candidate.get_help().map(ToString::to_string);
        if let Some(help) = help.as_deref().and_then(|help| help.lines().next()) {
            lines.push('\t');
            lines.push_str(help);
        }
        lines.push('\n');
    }
    format!("{lines}:{directive}\n")
}
