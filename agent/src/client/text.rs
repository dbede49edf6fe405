//! Words for numbers, and text that is safe to print.

use std::borrow::Cow;

use dinle_proto::v1::{self, event::Detail};

/// Nothing to show.
pub(super) const NONE: &str = "-";

const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

/// The name that `--kinds` takes: `exec` for KIND_EXEC.
pub(super) fn kind(number: i32) -> String {
    match v1::Kind::try_from(number) {
        Ok(kind) => kind.name(),
        Err(_) => format!("kind-{number}"),
    }
}

/// All kinds that an agent can be asked for.
pub(super) fn all_kinds() -> impl Iterator<Item = v1::Kind> {
    // The contract numbers kinds below 64.
    (1..64).filter_map(|number| v1::Kind::try_from(number).ok())
}

/// The name of a stage: `CLIENT_QUEUE`.
pub(super) fn stage(number: i32) -> String {
    match v1::LossStage::try_from(number) {
        Ok(stage) => short_name(stage.as_str_name(), "LOSS_STAGE_").to_owned(),
        Err(_) => format!("STAGE_{number}"),
    }
}

/// How much is told of a kind: `sampled`.
pub(super) fn fidelity(number: i32) -> String {
    match v1::Fidelity::try_from(number) {
        Ok(v1::Fidelity::Unspecified) => "all".to_owned(),
        Ok(fidelity) => short_name(fidelity.as_str_name(), "FIDELITY_").to_lowercase(),
        Err(_) => format!("fidelity-{number}"),
    }
}

/// A sentence on a kind of which more or less is told from now on.
pub(super) fn told(kind: i32, fidelity: i32) -> String {
    let kind = self::kind(kind);
    match v1::Fidelity::try_from(fidelity) {
        Ok(v1::Fidelity::Unspecified) => format!("{kind}: everything is told again"),
        Ok(v1::Fidelity::Sampled) => format!(
            "{kind}: the agent is over its CPU budget, and tells at most 100 events a second of each pod; those beyond are counted as lost"
        ),
        Ok(v1::Fidelity::Counted) => {
            format!("{kind}: the agent is over its CPU budget, and only counts events, as lost")
        }
        Ok(v1::Fidelity::Detached) => format!(
            "{kind}: the agent is over its CPU budget, and hears nothing of it any more: what happens now is not even counted"
        ),
        Err(_) => {
            format!("{kind}: less is told, in a way that this client does not know ({fidelity})")
        }
    }
}

/// `jane (10.0.0.7:41234)`, or where the connection comes from alone.
pub(super) fn caller(caller: Option<&v1::Caller>) -> String {
    match caller {
        Some(v1::Caller { peer, user, .. }) if user.is_empty() => or_none(peer).to_owned(),
        Some(v1::Caller { peer, user, .. }) => format!("{user} ({peer})"),
        None => NONE.to_owned(),
    }
}

/// How much is known of a workload: `container`.
pub(super) fn state(number: i32) -> String {
    match v1::IdentityState::try_from(number) {
        Ok(state) => short_name(state.as_str_name(), "IDENTITY_STATE_").to_lowercase(),
        Err(_) => format!("state-{number}"),
    }
}

fn short_name<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// A sentence on events that were lost.
pub(super) fn loss(loss: &v1::Loss) -> String {
    let v1::Loss {
        kind: number,
        stage: at,
        count,
        first_sequence: _,
        last_sequence: _,
    } = loss;
    let (at_most, why) = match v1::LossStage::try_from(*at) {
        Ok(v1::LossStage::KernelRing) => ("", "the kernel's ring buffer was full"),
        Ok(v1::LossStage::KernelSkipped) => (
            "up to ",
            "the kernel did not run a program that tells of them",
        ),
        Ok(v1::LossStage::Agent) => ("", "the agent could not read them"),
        Ok(v1::LossStage::ClientQueue) => ("", "this client read too slowly"),
        Ok(v1::LossStage::Connection) => (
            "",
            "the connection broke, and they were not kept long enough to be sent again",
        ),
        Ok(v1::LossStage::RateLimit) => ("", "there were more than may be told in a second"),
        Ok(v1::LossStage::KernelTable) => ("", "a table in the kernel was full"),
        Ok(v1::LossStage::Unspecified) | Err(_) => ("", "a newer dinle knows why"),
    };
    let plural = if *count == 1 { "" } else { "s" };
    format!(
        "lost {at_most}{} {} event{plural}: {why} ({})",
        thousands(*count),
        kind(*number),
        stage(*at)
    )
}

/// `1204` as `1,204`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number, or `-` for 0 where that means that it is not known.
pub(super) fn known(number: u64) -> String {
    if number == 0 {
        NONE.to_owned()
    } else {
        thousands(number)
    }
}

/// A number that names something, or `-` for 0 where that means that it is not known.
pub(super) fn known_plain(number: u64) -> String {
    if number == 0 {
        NONE.to_owned()
    } else {
        number.to_string()
    }
}

/// The text, or `-` for none.
pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

/// In the place of arguments and paths that the user may not see.
pub(super) const REDACTED: &str = "(redacted)";

/// The event as people are shown it: what was left out of it is marked.
pub(super) fn marked(event: &v1::Event) -> Cow<'_, v1::Event> {
    if !event.redacted {
        return Cow::Borrowed(event);
    }
    let mut event = event.clone();
    let place = match &mut event.detail {
        Some(Detail::Exec(exec)) => Some(&mut exec.filename),
        Some(Detail::FileOpen(open)) => Some(&mut open.path),
        Some(Detail::FileDelete(delete)) => Some(&mut delete.path),
        _ => None,
    };
    if let Some(place) = place {
        *place = REDACTED.to_owned();
    }
    Cow::Owned(event)
}

/// Time of day in UTC to the millisecond.
pub(super) fn clock(time: Option<&prost_types::Timestamp>) -> String {
    let Some(prost_types::Timestamp { seconds, nanos }) = time else {
        return NONE.to_owned();
    };
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        second / 3600,
        second / 60 % 60,
        second % 60,
        nanos / 1_000_000
    )
}

/// Seconds to the millisecond: `1.204s`.
pub(super) fn seconds(duration: Option<&prost_types::Duration>) -> String {
    match duration {
        Some(prost_types::Duration { seconds, nanos }) => {
            format!("{seconds}.{:03}s", nanos / 1_000_000)
        }
        None => NONE.to_owned(),
    }
}

/// How a process ended: its exit status, or the signal that ended it.
pub(super) fn code(exit: &v1::Exit) -> String {
    let v1::Exit {
        code,
        signal,
        core_dumped,
        duration: _,
    } = exit;
    let core = if *core_dumped { "+core" } else { "" };
    match signal {
        0 => format!("{code}{core}"),
        signal => format!("{}{core}", signal_name(*signal)),
    }
}

pub(super) use crate::errno::name as errno;

/// Bytes as people say them: `1.5K`, `20M`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    let mut value = bytes as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit.is_empty() || value >= 100.0 {
        format!("{value:.0}{unit}")
    } else {
        format!("{value:.1}{unit}")
    }
}

/// A span in milliseconds, as the tools for disks and connections print it: `12.34`.
pub(super) fn milliseconds(span: Option<&prost_types::Duration>) -> String {
    match span {
        Some(prost_types::Duration { seconds, nanos }) => {
            format!("{:.2}", *seconds as f64 * 1e3 + f64::from(*nanos) / 1e6)
        }
        None => NONE.to_owned(),
    }
}

/// The name of an enumerator without what all of its enum begin with.
pub(super) fn without_prefix(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_owned()
}

/// `10.0.0.1:80`, `[::1]:80`, or the pod's name where it is known.
pub(super) fn endpoint(end: Option<&v1::Endpoint>) -> String {
    let Some(v1::Endpoint {
        address,
        port,
        workload,
    }) = end
    else {
        return NONE.to_owned();
    };
    match workload {
        Some(workload) => format!("{}/{}:{port}", workload.namespace, workload.pod),
        None if address.contains(':') => format!("[{address}]:{port}"),
        None => format!("{address}:{port}"),
    }
}

/// Names of `signal(7)`; the numbers are those of x86-64 and arm64.
fn signal_name(signal: u32) -> String {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    // glibc keeps 32 and 33 for itself and counts from 34.
    const RT_MIN: u32 = 34;
    const RT_MAX: u32 = 64;
    let named = (signal as usize)
        .checked_sub(1)
        .and_then(|index| NAMES.get(index));
    match (named, signal) {
        (Some(name), _) => (*name).to_owned(),
        (None, RT_MIN) => "SIGRTMIN".to_owned(),
        (None, RT_MIN..=RT_MAX) => format!("SIGRTMIN+{}", signal - RT_MIN),
        (None, other) => format!("SIG{other}"),
    }
}

/// Text without control characters, which could move the cursor, hide lines or end them: each is written as `\n` or `\u{1b}`.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    Cow::Owned(cleaned)
}

/// A word as a shell would have to be given it, on one line.
pub(super) fn shell_quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "@%+=:,./_-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return Cow::Borrowed(word);
    }
    if !word.contains(char::is_control) {
        return Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")));
    }
    let mut quoted = String::from("$'");
    for c in word.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    Cow::Owned(quoted)
}

/// A word as bcc's `execsnoop -q` quotes it.
pub(super) fn bcc_quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let table = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1204, "1,204"),
            (123_456, "123,456"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ];
        for (number, expected) in table {
            assert_eq!(thousands(number), expected);
        }
        assert_eq!(known(0), "-");
        assert_eq!(known(1000), "1,000");
    }

    #[test]
    fn every_kind_and_stage_has_a_name() {
        assert_eq!(
            all_kinds().map(v1::Kind::name).collect::<Vec<_>>(),
            [
                "exec",
                "exit",
                "fork",
                "file_open",
                "file_delete",
                "tcp_session",
                "tcp_connect",
                "tcp_reset",
                "tcp_retransmit",
                "block_io",
                "block_latency",
                "drop",
                "drop_count"
            ]
        );
        assert_eq!(kind(1), "exec");
        assert_eq!(kind(99), "kind-99");
        assert_eq!(stage(4), "CLIENT_QUEUE");
        assert_eq!(stage(99), "STAGE_99");
        assert_eq!(state(4), "container");
        assert_eq!(state(99), "state-99");
    }

    #[test]
    fn losses_are_told_in_a_sentence() {
        let table = [
            (
                v1::LossStage::KernelRing as i32,
                1,
                "lost 1 exec event: the kernel's ring buffer was full (KERNEL_RING)",
            ),
            (
                v1::LossStage::KernelSkipped as i32,
                2,
                "lost up to 2 exec events: the kernel did not run a program that tells of them (KERNEL_SKIPPED)",
            ),
            (
                v1::LossStage::Agent as i32,
                3,
                "lost 3 exec events: the agent could not read them (AGENT)",
            ),
            (
                v1::LossStage::ClientQueue as i32,
                1204,
                "lost 1,204 exec events: this client read too slowly (CLIENT_QUEUE)",
            ),
            (
                v1::LossStage::RateLimit as i32,
                5,
                "lost 5 exec events: there were more than may be told in a second (RATE_LIMIT)",
            ),
            (
                99,
                6,
                "lost 6 exec events: a newer dinle knows why (STAGE_99)",
            ),
        ];
        for (stage, count, expected) in table {
            let told = v1::Loss {
                kind: v1::Kind::Exec.into(),
                stage,
                count,
                ..Default::default()
            };
            assert_eq!(loss(&told), expected);
        }
    }

    #[test]
    fn times_are_utc_to_the_millisecond() {
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        assert_eq!(clock(at(0, 0).as_ref()), "00:00:00.000");
        assert_eq!(clock(at(1_700_000_000, 7_999_999).as_ref()), "22:13:20.007");
        assert_eq!(clock(at(-1, 0).as_ref()), "23:59:59.000");
        assert_eq!(clock(None), "-");
        let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        assert_eq!(seconds(span(1, 204_000_000).as_ref()), "1.204s");
        assert_eq!(seconds(span(0, 900_000).as_ref()), "0.000s");
        assert_eq!(seconds(span(3725, 0).as_ref()), "3725.000s");
        assert_eq!(seconds(None), "-");
    }

    #[test]
    fn exits_show_their_code_or_signal() {
        let table = [
            (0, 0, false, "0"),
            (3, 0, false, "3"),
            (0, 9, false, "SIGKILL"),
            (0, 11, true, "SIGSEGV+core"),
            (0, 15, false, "SIGTERM"),
            (0, 31, false, "SIGSYS"),
            (0, 32, false, "SIG32"),
            (0, 34, false, "SIGRTMIN"),
            (0, 64, false, "SIGRTMIN+30"),
            (0, 65, false, "SIG65"),
        ];
        for (exit_code, signal, core_dumped, expected) in table {
            let exit = v1::Exit {
                code: exit_code,
                signal,
                core_dumped,
                duration: None,
            };
            assert_eq!(code(&exit), expected);
        }
    }

    #[test]
    fn text_cannot_take_over_the_terminal() {
        assert_eq!(clean("plain ü"), "plain ü");
        assert_eq!(clean("a\nb\t\u{1b}[2J\u{9b}"), "a\\nb\\t\\u{1b}[2J\\u{9b}");
        assert_eq!(shell_quoted("\u{1b}[2J"), "$'\\u001b[2J'");
    }

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        let table = [
            ("ls", "ls"),
            ("--color=auto", "--color=auto"),
            ("/usr/bin/x.y", "/usr/bin/x.y"),
            ("ürün", "ürün"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$HOME", "'$HOME'"),
            ("it's", r"'it'\''s'"),
            ("a\nb'c\\", r"$'a\nb\'c\\'"),
        ];
        for (word, expected) in table {
            assert_eq!(shell_quoted(word), expected);
        }
        assert_eq!(bcc_quoted("say \"hi\""), r#""say \"hi\"""#);
    }
}
