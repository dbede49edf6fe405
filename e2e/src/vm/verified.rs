//! How many instructions the verifier follows in each program, by kernel: what a start of the agent costs, and how far a program is from the
//! verifier's limit of a million. Kept in a file, so that growth is seen.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

/// How much more than is kept is let pass, in percent: another compiler alone makes for some.
const GROWTH: u64 = 10;
/// Counts that are so much apart are alike, however small they are.
const SLACK: u64 = 100;

const HEAD: &str = "\
# Instructions that the verifier followed, by kernel and program: written by `vm --accept`. More than a tenth above these fails.
";

/// Counts by kernel and program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verified(BTreeMap<(String, String), u64>);

impl Verified {
    /// Reads the file; one that is not there keeps nothing.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path);
        Self::parse(&text.with_context(|| format!("cannot read {}", path.display()))?)
            .with_context(|| format!("{}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        let row = |line: &str| {
            let mut cells = line.split('\t');
            let mut cell = || {
                cells
                    .next()
                    .with_context(|| format!("{line:?} has no three cells"))
            };
            let key = (cell()?.to_owned(), cell()?.to_owned());
            let count = cell()?.parse();
            Ok((
                key,
                count.with_context(|| format!("{line:?} ends with no number"))?,
            ))
        };
        rows.map(row).collect::<Result<_>>().map(Self)
    }

    /// Takes the counts of a kernel in place of those that are kept.
    pub fn accept(&mut self, kernel: &str, programs: &[(String, Result<String, String>)]) {
        self.0.retain(|(of, _), _| of != kernel);
        for (program, count) in counts(programs) {
            self.0
                .insert((kernel.to_owned(), program.to_owned()), count);
        }
    }

    /// What has grown, in words for the user.
    pub fn grown(
        &self,
        kernel: &str,
        programs: &[(String, Result<String, String>)],
    ) -> Vec<String> {
        let grown = counts(programs).filter_map(|(program, now)| {
            let key = (kernel.to_owned(), program.to_owned());
            let kept = *self.0.get(&key)?;
            (now > kept + (kept * GROWTH / 100).max(SLACK)).then(|| {
                format!(
                    "{kernel}: {program}: the verifier follows {now} instructions, {kept} before"
                )
            })
        });
        grown.collect()
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = HEAD.to_owned();
        for ((kernel, program), count) in &self.0 {
            let _ = writeln!(text, "{kernel}\t{program}\t{count}");
        }
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Those of the programs that load. Kernels before 5.16 do not say, and tell 0.
fn counts(programs: &[(String, Result<String, String>)]) -> impl Iterator<Item = (&str, u64)> {
    programs.iter().filter_map(|(program, outcome)| {
        let count = outcome.as_ref().ok()?.parse().ok()?;
        (count > 0).then_some((program.as_str(), count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(counts: &[(&str, &str)]) -> Vec<(String, Result<String, String>)> {
        let outcome = |count: &str| match count {
            "" => Err("no such function".to_owned()),
            count => Ok(count.to_owned()),
        };
        let program = |(name, count): &(&str, &str)| ((*name).to_owned(), outcome(count));
        counts.iter().map(program).collect()
    }

    #[test]
    fn more_than_a_tenth_is_told_and_less_is_not() {
        let mut verified = Verified::default();
        verified.accept(
            "6.1",
            &programs(&[("a", "10000"), ("b", "50"), ("c", ""), ("d", "0")]),
        );
        let grown = |counts: &[(&str, &str)]| verified.grown("6.1", &programs(counts));
        assert_eq!(
            grown(&[
                ("a", "11000"),
                ("b", "150"),
                ("c", "7"),
                ("d", "999"),
                ("new", "9")
            ]),
            [""; 0]
        );
        assert_eq!(
            grown(&[("a", "11001"), ("b", "151")]),
            [
                "6.1: a: the verifier follows 11001 instructions, 10000 before",
                "6.1: b: the verifier follows 151 instructions, 50 before",
            ]
        );
        assert_eq!(
            verified.grown("6.12", &programs(&[("a", "20000")])),
            [""; 0],
            "not kept"
        );
    }

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let dir = tempfile::TempDir::new()?;
        let path = dir.path().join("verified.tsv");
        assert_eq!(Verified::read(&path)?, Verified::default());
        let mut verified = Verified::default();
        verified.accept("6.1", &programs(&[("a", "1"), ("gone", "2")]));
        verified.accept("7.x", &programs(&[("a", "3")]));
        verified.accept("6.1", &programs(&[("a", "4")]));
        verified.write(&path)?;
        assert_eq!(Verified::read(&path)?, verified);
        assert_eq!(
            fs::read_to_string(&path)?,
            format!("{HEAD}6.1\ta\t4\n7.x\ta\t3\n")
        );
        let error = Verified::parse("6.1\ta\tmany").expect_err("no number");
        assert_eq!(error.to_string(), "\"6.1\\ta\\tmany\" ends with no number");
        Ok(())
    }
}
