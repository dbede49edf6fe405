//! What a virtual machine tells on its serial line, and what is made of it.

use std::fmt::Write;

/// Begins each line that is for the harness.
pub const MARK: &str = "DINLE-VM";
/// Begins each line about a program of the agent's: name, whether it loads, and instructions or the reason, after tabs.
const PROGRAM: &str = "PROGRAM\t";
/// Begins each line about a kind of event: name, whether it is available, and by which ways or why not, after tabs.
const KIND: &str = "KIND\t";
/// What the kernel says last when it gives up.
pub const PANIC: &str = "Kernel panic";

/// The step that makes a machine out of a kernel.
pub const SETUP: &str = "setup";
/// The step in which the agent tries each of its programs.
pub const CHECK: &str = "check";

/// Most lines of a step that are shown when it failed. The rest is in the log.
const SHOWN_LINES: usize = 200;

/// The line that tells the kernel's release.
pub fn kernel_line(release: &str) -> String {
    format!("{MARK} kernel={release}")
}

/// The line before a step.
pub fn start_line(step: &str) -> String {
    format!("{MARK} start={step}")
}

/// The line after a step.
pub fn end_line(step: &str, exit: i32) -> String {
    format!("{MARK} step={step} exit={exit}")
}

/// How a virtual machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// QEMU ended by itself.
    Off,
    /// The kernel panicked.
    Panic,
    /// It took too long and was ended.
    Timeout,
}

/// What one virtual machine told.
#[derive(Debug)]
pub struct Boot {
    /// Release of the kernel, if it got so far.
    pub release: Option<String>,
    /// The agent's programs, with the instructions that the verifier counted, or the reason against.
    pub programs: Vec<(String, Result<String, String>)>,
    /// Kinds of events, with the ways in which they attach, or the reason against.
    pub kinds: Vec<(String, Result<String, String>)>,
    steps: Vec<Step>,
    /// How it ended.
    pub end: End,
    /// What was told outside of steps.
    loose: Vec<String>,
}

/// A program that ran in the machine.
#[derive(Debug, Default)]
struct Step {
    name: String,
    exit: Option<i32>,
    passed: u32,
    failed: u32,
    /// Whether it told what it is there to tell: a program, or the result of tests.
    told: bool,
    lines: Vec<String>,
}

impl Step {
    /// Success alone is not enough: one that tried nothing has succeeded, too.
    fn succeeded(&self) -> bool {
        let Self {
            name,
            exit,
            failed,
            told,
            ..
        } = self;
        *exit == Some(0) && *failed == 0 && (*told || name == SETUP)
    }

    /// Tests that failed. A step that fails without naming one counts as one.
    fn failures(&self) -> u32 {
        if self.succeeded() {
            0
        } else {
            self.failed.max(1)
        }
    }
}

impl Boot {
    /// Reads the log of a machine that was to do the steps `expected`.
    pub fn read(log: &str, expected: &[String], end: End) -> Self {
        let mut boot = Self {
            release: None,
            programs: Vec::new(),
            kinds: Vec::new(),
            steps: Vec::new(),
            end,
            loose: Vec::new(),
        };
        let mut running: Option<Step> = None;
        for line in log.lines().map(str::trim_end) {
            if let Some(release) = value(line, "kernel") {
                boot.release = Some(release.to_owned());
            } else if let Some(name) = value(line, "start") {
                boot.steps.extend(running.replace(Step {
                    name: name.to_owned(),
                    ..Step::default()
                }));
            } else if let Some(exit) = value(line, "exit") {
                boot.steps.extend(running.take().map(|step| Step {
                    exit: exit.parse().ok(),
                    ..step
                }));
            } else if let Some(step) = &mut running {
                if let Some(program) = outcome(line, PROGRAM) {
                    boot.programs.push(program);
                    step.told = true;
                }
                boot.kinds.extend(outcome(line, KIND));
                if let Some(result) = line.strip_prefix("test result: ") {
                    step.passed += count(result, "passed");
                    step.failed += count(result, "failed");
                    step.told = true;
                }
                step.lines.push(line.to_owned());
            } else {
                boot.loose.push(line.to_owned());
            }
        }
        boot.steps.extend(running);
        for name in expected {
            if boot.steps.iter().all(|step| step.name != *name) {
                boot.steps.push(Step {
                    name: name.clone(),
                    ..Step::default()
                });
            }
        }
        boot
    }

    /// Tests that passed.
    pub fn passed(&self) -> u32 {
        self.steps.iter().map(|step| step.passed).sum()
    }

    /// Tests of a sensor: how many passed, and how many failed. They are in a module of its name.
    fn tests_of(&self, sensor: &str) -> (usize, usize) {
        let lines = self.steps.iter().flat_map(|step| &step.lines);
        let results = lines.filter_map(|line| {
            let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
            name.starts_with(&format!("{sensor}::")).then_some(result)
        });
        let count = |wanted: &str| results.clone().filter(|result| *result == wanted).count();
        (count("ok"), count("FAILED"))
    }

    /// Tests that failed, and steps that failed otherwise or never ended.
    pub fn failed(&self) -> u32 {
        self.steps.iter().map(Step::failures).sum()
    }

    /// What to read to see why it failed; empty if it did not.
    pub fn story(&self) -> String {
        let mut story = String::new();
        let mut tell = |title: &str, lines: &[String]| {
            let left_out = lines.len().saturating_sub(SHOWN_LINES);
            let _ = writeln!(story, "--- {title}");
            if left_out > 0 {
                let _ = writeln!(story, "({left_out} lines left out)");
            }
            for line in &lines[left_out..] {
                let _ = writeln!(story, "{line}");
            }
        };
        let mut never_ran = Vec::new();
        for step in &self.steps {
            let Step {
                name, exit, lines, ..
            } = step;
            match exit {
                Some(_) if step.succeeded() => {}
                Some(0) if !step.told => tell(&format!("{name} told no result"), lines),
                Some(exit) => tell(&format!("{name} failed with {exit}"), lines),
                None if lines.is_empty() => never_ran.push(name.as_str()),
                None => tell(&format!("{name} did not end"), lines),
            }
        }
        if self.steps.iter().any(|step| step.exit.is_none()) && !self.loose.is_empty() {
            tell("outside of the steps", &self.loose);
        }
        if !never_ran.is_empty() {
            tell(&format!("without a result: {}", never_ran.join(", ")), &[]);
        }
        match self.end {
            End::Off => {}
            End::Panic => tell("the kernel panicked", &[]),
            End::Timeout => tell("the time was over", &[]),
        }
        story
    }
}

/// The value of `key` in a line for the harness.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mut words = line.strip_prefix(MARK)?.split(' ');
    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn outcome(line: &str, mark: &str) -> Option<(String, Result<String, String>)> {
    let (name, rest) = line.strip_prefix(mark)?.split_once('\t')?;
    let (status, detail) = rest.split_once('\t').unwrap_or((rest, ""));
    let outcome = if status == "ok" {
        Ok(detail.to_owned())
    } else {
        Err(detail.to_owned())
    };
    Some((name.to_owned(), outcome))
}

/// The number before `what` in libtest's last line.
fn count(result: &str, what: &str) -> u32 {
    let mut words = result.split([' ', ';']).filter(|word| !word.is_empty());
    let mut before = "";
    words
        .find_map(|word| {
            if word == what {
                before.parse().ok()
            } else {
                before = word;
                None
            }
        })
        .unwrap_or(0)
}

/// Which program loads where: one row for each program, one column for each kernel.
pub fn table(boots: &[Boot]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in boots.iter().flat_map(|boot| &boot.programs) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let header = ["program".to_owned()]
        .into_iter()
        .chain(boots.iter().map(|boot| {
            boot.release
                .clone()
                .unwrap_or_else(|| "did not start".to_owned())
        }));
    let mut rows: Vec<Vec<String>> = vec![header.collect()];
    for name in names {
        let cells = boots.iter().map(|boot| {
            let outcome = boot
                .programs
                .iter()
                .find(|(other, _)| other == name)
                .map(|(_, outcome)| outcome);
            match outcome {
                Some(Ok(instructions)) => format!("✓ {instructions}"),
                Some(Err(reason)) => format!("– {}", reason.replace('|', "\\|")),
                None => "– not tried".to_owned(),
            }
        });
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    markdown(&rows)
}

/// Which kind of event is there on which kernel, by which ways: one row for each kind, one column for each kernel.
pub fn kinds(boots: &[Boot]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in boots.iter().flat_map(|boot| &boot.kinds) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let release = |boot: &Boot| {
        boot.release
            .clone()
            .unwrap_or_else(|| "did not start".to_owned())
    };
    let header = ["kind".to_owned()]
        .into_iter()
        .chain(boots.iter().map(release));
    let mut rows: Vec<Vec<String>> = vec![header.collect()];
    for name in names {
        let sensor = name.split('_').next().unwrap_or(name);
        let cells = boots.iter().map(|boot| {
            let found = boot.kinds.iter().find(|(other, _)| other == name);
            match (found.map(|(_, outcome)| outcome), boot.tests_of(sensor)) {
                (None, _) => "not tried".to_owned(),
                (Some(Err(reason)), _) => format!("unavailable: {}", reason.replace('|', "\\|")),
                (Some(Ok(ways)), (_, 1..)) => format!("{ways}: FAILED"),
                (Some(Ok(ways)), (0, 0)) => format!("{ways}: loads"),
                (Some(Ok(ways)), (_, 0)) => format!("{ways}: works"),
            }
        });
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    markdown(&rows)
}

/// Puts a table in a document, between the two lines that mark its place.
pub fn replace_table(document: &str, table: &str) -> Option<String> {
    const BEGIN: &str = "<!-- made by vm -->\n";
    const END: &str = "<!-- so far -->\n";
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// A table whose columns are aligned for those who read it as text.
fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut table = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(table, "| {cell:width$} ");
        }
        table.push_str("|\n");
        if i == 0 {
            for width in &widths {
                let _ = write!(table, "|{}", "-".repeat(width + 2));
            }
            table.push_str("|\n");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
        [    0.4] early words of the kernel\r\n\
        DINLE-VM kernel=6.12.1\r\n\
        DINLE-VM start=setup\r\n\
        DINLE-VM step=setup exit=0\r\n\
        DINLE-VM start=check\r\n\
        PROGRAM\tsched_process_exec\tok\t1234\r\n\
        PROGRAM\tvfs_open\tunavailable\tno BTF | no luck\r\n\
        DINLE-VM step=check exit=0\r\n\
        DINLE-VM start=kernel\r\n\
        running 3 tests\r\n\
        test a ... ok\r\n\
        test b ... FAILED\r\n\
        test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s\r\n\
        DINLE-VM step=kernel exit=101\r\n";

    fn read(log: &str, end: End) -> Boot {
        Boot::read(log, &[SETUP, CHECK, "kernel"].map(str::to_owned), end)
    }

    #[test]
    fn tests_are_counted_and_the_failed_step_is_told() {
        let boot = read(LOG, End::Off);
        assert_eq!(boot.release.as_deref(), Some("6.12.1"));
        assert_eq!((boot.passed(), boot.failed()), (2, 1));
        assert_eq!(
            boot.story(),
            "--- kernel failed with 101\nrunning 3 tests\ntest a ... ok\ntest b ... FAILED\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s\n"
        );
    }

    #[test]
    fn success_is_silent() {
        let log = LOG
            .replace("FAILED. 2 passed; 1 failed", "ok. 3 passed; 0 failed")
            .replace("exit=101", "exit=0");
        let boot = read(&log, End::Off);
        assert_eq!((boot.passed(), boot.failed()), (3, 0));
        assert_eq!(boot.story(), "");
    }

    #[test]
    fn what_did_not_end_or_begin_failed() {
        let cut = LOG.find("PROGRAM\tvfs_open").expect("a place in the log");
        let boot = read(&LOG[..cut], End::Panic);
        assert_eq!(
            (boot.passed(), boot.failed()),
            (0, 2),
            "the check and the tests"
        );
        assert_eq!(
            boot.story(),
            "--- check did not end\nPROGRAM\tsched_process_exec\tok\t1234\n\
             --- outside of the steps\n[    0.4] early words of the kernel\n\
             --- without a result: kernel\n--- the kernel panicked\n"
        );
        let silent = read("", End::Timeout);
        assert_eq!((silent.passed(), silent.failed()), (0, 3));
        assert_eq!(
            silent.story(),
            "--- without a result: setup, check, kernel\n--- the time was over\n"
        );
    }

    #[test]
    fn a_step_that_fails_without_tests_is_one_failure() {
        let log = "DINLE-VM start=check\nno kernel BTF\nDINLE-VM step=check exit=139\n";
        let boot = Boot::read(log, &[CHECK.to_owned()], End::Off);
        assert_eq!((boot.passed(), boot.failed()), (0, 1));
        assert_eq!(boot.story(), "--- check failed with 139\nno kernel BTF\n");
    }

    #[test]
    fn a_step_that_tells_no_result_failed() {
        let log = "DINLE-VM start=check\nusage: dinle\nDINLE-VM step=check exit=0\n";
        let boot = Boot::read(log, &[CHECK.to_owned()], End::Off);
        assert_eq!((boot.passed(), boot.failed()), (0, 1));
        assert_eq!(boot.story(), "--- check told no result\nusage: dinle\n");
    }

    #[test]
    fn a_long_story_keeps_its_end() {
        let words: String = (0..SHOWN_LINES + 7)
            .map(|i| format!("line {i}\n"))
            .collect();
        let log = format!(
            "{}\n{words}{}\n",
            start_line("kernel"),
            end_line("kernel", 1)
        );
        let story = Boot::read(&log, &["kernel".to_owned()], End::Off).story();
        assert!(
            story.starts_with("--- kernel failed with 1\n(7 lines left out)\nline 7\n"),
            "{story}"
        );
    }

    #[test]
    fn a_kind_works_where_it_is_available_and_its_tests_pass() {
        let log = |kinds: &str, tests: &str| {
            let log = format!(
                "DINLE-VM kernel=6.1\nDINLE-VM start=check\n{kinds}DINLE-VM step=check exit=0\n\
                 DINLE-VM start=kernel\n{tests}DINLE-VM step=kernel exit=0\n"
            );
            read(&log, End::Off)
        };
        let kinds = "KIND\tfile_open\tok\tfentry, fexit\nKIND\texec\tok\ttp_btf\n";
        let boots = [
            log(
                kinds,
                "test file::a ... ok\ntest file::b ... ok\ntest exec::a ... ok\n",
            ),
            log(kinds, "test file::a ... ok\ntest file::b ... FAILED\n"),
            log(
                "KIND\tfile_open\tunavailable\tno | hook\n",
                "test file::a ... ok\n",
            ),
        ];
        let table = kinds_of(&boots);
        assert_eq!(
            table,
            [
                ["kind", "6.1", "6.1", "6.1"],
                [
                    "file_open",
                    "fentry, fexit: works",
                    "fentry, fexit: FAILED",
                    "unavailable: no \\| hook"
                ],
                ["exec", "tp_btf: works", "tp_btf: loads", "not tried"],
            ]
        );
    }

    /// Cells of the table of kinds.
    fn kinds_of(boots: &[Boot]) -> Vec<Vec<String>> {
        let table = kinds(boots).replace("\\|", "\u{1}");
        let cells = |line: &str| {
            let cells = line.trim_matches('|').split('|');
            cells
                .map(|cell| cell.trim().replace('\u{1}', "\\|"))
                .collect()
        };
        table
            .lines()
            .filter(|line| !line.starts_with("|-"))
            .map(cells)
            .collect()
    }

    #[test]
    fn a_table_goes_where_the_document_has_a_place_for_it() {
        let document = "a\n<!-- made by vm -->\nold\n<!-- so far -->\nb\n";
        let new = replace_table(document, "new\n");
        assert_eq!(
            new.as_deref(),
            Some("a\n<!-- made by vm -->\nnew\n<!-- so far -->\nb\n")
        );
        assert_eq!(replace_table("a\n", "new\n"), None);
    }

    #[test]
    fn the_table_has_a_row_for_each_program_and_a_column_for_each_kernel() {
        let boots = [
            read(LOG, End::Off),
            read(
                "DINLE-VM kernel=7.3.4\nDINLE-VM start=check\nPROGRAM\tvfs_open\tok\t99\nDINLE-VM step=check exit=0\n",
                End::Off,
            ),
            read("", End::Timeout),
        ];
        assert_eq!(
            table(&boots),
            "| program            | 6.12.1              | 7.3.4       | did not start |\n\
             |--------------------|---------------------|-------------|---------------|\n\
             | sched_process_exec | ✓ 1234              | – not tried | – not tried   |\n\
             | vfs_open           | – no BTF \\| no luck | ✓ 99        | – not tried   |\n"
        );
    }
}
