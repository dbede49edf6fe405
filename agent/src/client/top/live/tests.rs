//! The view on a screen of cells.

use dinle_proto::v1::event::Detail;
use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::*;
use crate::client::top::{
    subjects::{Disk, Drops, Files, Process, Tcp},
    sums::ROWS_MAX,
    tests::{event, latency, snapshot, who},
};

fn live() -> Live {
    of(None, false).expect("columns")
}

fn of(sort: Option<&str>, colored: bool) -> Result<Live, String> {
    let subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(Process),
        Box::new(Files),
        Box::<Tcp>::default(),
        Box::new(Disk),
        Box::new(Drops),
    ];
    Live::new(subjects, sort, colored, Notes::default())
}

/// What is on a screen of that size.
fn screen(live: &mut Live, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
    terminal
        .draw(|frame| live.render(frame.area(), frame.buffer_mut()))
        .expect("it is drawn");
    terminal
}

fn lines(live: &mut Live) -> Vec<String> {
    lines_of(&screen(live, 80, 24))
}

fn lines_of(screen: &Terminal<TestBackend>) -> Vec<String> {
    let buffer = screen.backend().buffer();
    let rows = buffer.content().chunks(buffer.area.width.into());
    rows.map(|row| {
        let text: String = row.iter().map(|cell| cell.symbol()).collect();
        text.trim_end().to_owned()
    })
    .collect()
}

fn press(live: &mut Live, keys: &str) {
    for key in keys.chars() {
        assert!(live.pressed(code(key)).is_continue(), "{key:?} quits");
        // By what is on the screen then.
        lines(live);
    }
}

/// Letters, and signs for other keys.
fn code(key: char) -> KeyCode {
    match key {
        '↵' => KeyCode::Enter,
        '⎋' => KeyCode::Esc,
        '⌫' => KeyCode::Backspace,
        '⇥' => KeyCode::Tab,
        '⇤' => KeyCode::BackTab,
        '↓' => KeyCode::Down,
        '↑' => KeyCode::Up,
        '→' => KeyCode::Right,
        '←' => KeyCode::Left,
        letter => KeyCode::Char(letter),
    }
}

fn opens(live: &mut Live, pod: &str, path: &str, count: usize) {
    let open = event(Detail::FileOpen(v1::FileOpen {
        path: path.to_owned(),
        ..Default::default()
    }));
    for _ in 0..count {
        live.event(&open, &who(pod), &mut Vec::new())
            .expect("a Vec takes all");
    }
}

fn tick(live: &mut Live) {
    for tab in &mut live.tabs {
        tab.turn(Duration::from_secs(1), None);
    }
}

/// Rows of the table, squeezed.
fn rows(live: &mut Live) -> Vec<String> {
    let lines = lines(live);
    // Below the tabs, the status, the drawings and the names; above the books, the note and the keys.
    let rows = lines[8..21].iter().filter(|line| !line.is_empty());
    rows.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn files() -> Live {
    let mut live = live();
    live.at = 1;
    opens(&mut live, "web", "/etc/hosts", 3);
    opens(&mut live, "web", "/etc/passwd", 23);
    opens(&mut live, "db", "/var/lib/data", 29);
    tick(&mut live);
    live
}

#[test]
fn a_screen_of_the_usual_size_has_all_of_it() {
    let mut live = files();
    live.news(News::Heard("n1"), &mut Vec::new())
        .expect("drawn");
    let lines = lines(&mut live);
    assert_eq!(lines.len(), 24);
    assert!(
        lines[0].starts_with("dinle top  1 process  2 files  3 tcp  4 disk  5 drops "),
        "{lines:#?}"
    );
    assert!(lines[0].ends_with("1.0 s"), "{lines:#?}");
    assert_eq!(lines[1], "3 rows, node n1");
    assert!(
        lines[2].starts_with("OPENS by interval, highest 55"),
        "{lines:#?}"
    );
    assert!(lines[2].contains("what was done"), "{lines:#?}");
    assert!(lines[3].contains("opened"), "{lines:#?}");
    assert!(lines[3].ends_with("█ 55"), "{lines:#?}");
    let names = lines[7].split_whitespace().collect::<Vec<_>>();
    assert_eq!(
        names,
        [
            "POD",
            "PATH",
            "OPENS/s▼",
            "WRITES/s",
            "FAILED/s",
            "DELETED/s"
        ]
    );
    assert_eq!(lines[21], "books: none came yet");
    assert_eq!(
        lines[23],
        "Tab tabs  s/S sort  / filter  Space pause  Enter zoom  t total  ? help  q quit"
    );
    assert_eq!(
        rows(&mut live),
        [
            "shop/db /var/lib/data 29 0 0 0",
            "shop/web /etc/passwd 23 0 0 0",
            "shop/web /etc/hosts 3.0 0 0 0"
        ]
    );
}

#[test]
fn no_size_is_too_small() {
    let mut live = files();
    for width in 1..30 {
        for height in 1..30 {
            screen(&mut live, width, height);
        }
    }
    press(&mut live, "?");
    for size in 1..30 {
        screen(&mut live, size, size);
    }
    press(&mut live, "?");
    // What is lost is told to the last.
    let small = lines_of(&screen(&mut live, 60, 3));
    assert!(small[2].starts_with("books: "), "{small:?}");
}

#[test]
fn keys_take_another_tab() {
    let mut live = live();
    for (keys, at) in [
        ("⇥", 1),
        ("⇥⇥⇥⇥", 0),
        ("⇤", 4),
        ("3", 2),
        ("9", 2),
        ("1", 0),
    ] {
        press(&mut live, keys);
        assert_eq!(live.at, at, "{keys}");
    }
    assert!(live.pressed(KeyCode::Char('q')).is_break());
}

#[test]
fn rows_are_sorted_by_what_is_on_the_screen() {
    let mut live = files();
    let first = |live: &mut Live| rows(live)[0].clone();
    press(&mut live, "S");
    assert_eq!(first(&mut live), "shop/web /etc/hosts 3.0 0 0 0");
    press(&mut live, "r");
    assert_eq!(first(&mut live), "shop/db /var/lib/data 29 0 0 0");
    // By path, then by pod, and round to the last column.
    press(&mut live, "←");
    assert_eq!(first(&mut live), "shop/web /etc/hosts 3.0 0 0 0");
    assert!(lines(&mut live)[7].contains("PATH▼"));
    press(&mut live, "h");
    assert_eq!(first(&mut live), "shop/db /var/lib/data 29 0 0 0");
    press(&mut live, "h");
    assert!(lines(&mut live)[7].ends_with("DELETED/s▼"));
    press(&mut live, "sss");
    assert!(lines(&mut live)[7].contains("OPENS/s▼"));
    // Each tab has its own.
    press(&mut live, "1");
    assert!(lines(&mut live)[7].contains("EXECS/s▼"));
}

#[test]
fn the_order_can_be_asked_for_of_the_tab_that_has_it() {
    let live = of(Some("Sent/S"), false).expect("a column of tcp");
    let names = names(live.tabs[2].subject.as_ref());
    assert_eq!(names[live.tabs[2].order.column], "SENT/s");
    let refused = of(Some("size"), false).err().expect("none has it");
    assert!(
        refused.starts_with("--sort size: there is no such column; there are node, namespace, pod, container, comm, "),
        "{refused}"
    );
}

#[test]
fn a_filter_is_typed_and_kept_or_left() {
    let mut live = files();
    press(&mut live, "/");
    press(&mut live, "ETCq");
    assert_eq!(rows(&mut live), [""; 0]);
    assert!(lines(&mut live)[23].starts_with("only rows with: ETCq▏"));
    press(&mut live, "⌫");
    assert_eq!(rows(&mut live).len(), 2, "whatever the case");
    press(&mut live, "↵");
    assert_eq!(
        lines(&mut live)[1],
        "2 of 3 rows, with \"ETC\", not connected yet"
    );
    press(&mut live, "/x⎋");
    assert_eq!(rows(&mut live).len(), 2, "as before");
    press(&mut live, "⎋");
    assert_eq!(rows(&mut live).len(), 3);
    // As it is on the screen.
    press(&mut live, "/shop/db↵");
    assert_eq!(rows(&mut live), ["shop/db /var/lib/data 29 0 0 0"]);
}

#[test]
fn a_filter_has_a_bound() {
    let mut live = files();
    press(&mut live, "/");
    press(&mut live, &"x".repeat(100));
    assert_eq!(live.filter.len(), FILTER_MAX);
}

#[test]
fn what_is_shown_is_held_and_the_rest_is_counted() {
    let mut live = files();
    press(&mut live, " ");
    assert!(lines(&mut live)[0].contains("PAUSED"));
    opens(&mut live, "web", "/etc/hosts", 40);
    tick(&mut live);
    assert_eq!(rows(&mut live)[0], "shop/db /var/lib/data 29 0 0 0");
    press(&mut live, " ");
    assert!(!lines(&mut live)[0].contains("PAUSED"));
    assert_eq!(rows(&mut live), ["shop/web /etc/hosts 40 0 0 0"]);
    press(&mut live, "t");
    assert_eq!(
        rows(&mut live),
        [
            "shop/web /etc/hosts 43 0 0 0",
            "shop/db /var/lib/data 29 0 0 0",
            "shop/web /etc/passwd 23 0 0 0"
        ]
    );
    let lines = lines(&mut live);
    assert!(lines[1].contains("since "), "{lines:#?}");
    assert!(lines[7].contains("OPENS▼"), "{lines:#?}");
}

#[test]
fn a_pod_is_zoomed_into_in_all_tabs() {
    let mut live = files();
    opens(&mut live, "web", "/etc/hosts", 2);
    opens(&mut live, "db", "/var/lib/data", 1);
    tick(&mut live);
    press(&mut live, "/shop↵");
    // The second row is that of db.
    press(&mut live, "↓↵");
    assert_eq!(rows(&mut live), ["app /var/lib/data 1.0 0 0 0"]);
    let drawn = lines(&mut live);
    assert_eq!(drawn[1], "1 of 2 rows, pod shop/db, not connected yet");
    assert!(
        drawn[2].starts_with("OPENS by interval, highest 29"),
        "{drawn:#?}"
    );
    assert!(drawn[7].starts_with("CONTAINER"), "{drawn:#?}");
    assert!(drawn[23].contains("Esc back"), "{drawn:#?}");
    press(&mut live, "1");
    assert!(lines(&mut live)[1].contains("pod shop/db"));
    press(&mut live, "2⎋");
    assert_eq!(rows(&mut live).len(), 2);
}

#[test]
fn what_is_no_pod_is_zoomed_into_by_its_unit() {
    let mut live = live();
    let of = |unit: &str| Who {
        container: unit.to_owned(),
        ..Who::unknown("n1")
    };
    for unit in ["cron.service", "ssh.service"] {
        let exec = event(Detail::Exec(v1::Exec::default()));
        live.event(&exec, &of(unit), &mut Vec::new())
            .expect("it counts");
    }
    tick(&mut live);
    press(&mut live, "↓↵");
    assert_eq!(rows(&mut live), ["ssh.service - 1.0 0 0 - -"]);
    assert!(lines(&mut live)[1].contains("pod ssh.service"));
}

#[test]
fn who_has_gone_to_a_row_stays_there() {
    let mut live = live();
    live.at = 1;
    for number in 0..100 {
        opens(&mut live, "web", &format!("/{number:02}"), 100 - number);
    }
    tick(&mut live);
    let marked = |live: &mut Live| {
        let screen = screen(live, 80, 24);
        let buffer = screen.backend().buffer().clone();
        let rows = (8..21).filter(|y| {
            let style = buffer[(0, *y)].style();
            style
                .add_modifier
                .contains(ratatui::style::Modifier::REVERSED)
        });
        rows.map(|y| {
            lines_of(&screen)[usize::from(y)]
                .split_whitespace()
                .nth(1)
                .unwrap_or_default()
                .to_owned()
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(marked(&mut live), ["/00"]);
    press(&mut live, "jjk");
    assert_eq!(marked(&mut live), ["/01"]);
    press(&mut live, "G");
    assert_eq!(marked(&mut live), ["/99"]);
    press(&mut live, "r");
    assert_eq!(marked(&mut live), ["/99"], "wherever it is now");
    press(&mut live, "rg");
    assert_eq!(marked(&mut live), ["/00"]);
    live.pressed(KeyCode::PageDown)
        .is_continue()
        .then_some(())
        .expect("it goes on");
    assert_eq!(marked(&mut live), ["/13"], "a screen has 13");
    live.pressed(KeyCode::PageUp)
        .is_continue()
        .then_some(())
        .expect("it goes on");
    assert_eq!(marked(&mut live), ["/00"]);
    press(&mut live, "↑");
    assert_eq!(marked(&mut live), ["/00"]);
}

#[test]
fn spans_are_drawn_from_the_first_to_the_last() {
    let mut live = live();
    live.at = 3;
    let mut buckets = vec![0; 13];
    (buckets[9], buckets[12]) = (12, 3);
    let read = latency(v1::BlockOperation::Read, 4096, &buckets);
    live.event(&read, &who("db"), &mut Vec::new())
        .expect("it counts");
    live.snapshot_end(&snapshot(2), &mut Vec::new())
        .expect("drawn");
    let drawn = lines(&mut live);
    assert!(
        drawn[2].ends_with("15 requests by time in the device"),
        "{drawn:#?}"
    );
    // Bars of eight columns, three lines high: 12 is all of it, 3 are six eighths of a line.
    let right = |line: usize| -> String { drawn[line].chars().skip(41).collect() };
    assert_eq!(right(3), "████████");
    assert_eq!(right(4), "████████");
    assert_eq!(right(5), format!("████████{}▆▆▆▆▆▆▆▆", " ".repeat(16)));
    assert_eq!(right(6), format!("512µs{}8ms", " ".repeat(24)));
    assert!(rows(&mut live)[0].starts_with("shop/db vda read 2.0K 7.5 1.50 8.19 "));
    // Without drawings there is more room.
    press(&mut live, "d");
    assert!(lines(&mut live)[2].contains("BYTES/s▼"));
}

#[test]
fn losses_are_red_and_counted() {
    let ledger = |lost: u64| {
        let mut ledger = crate::client::books::Ledger::default();
        ledger.heartbeat(&v1::Heartbeat {
            books: vec![v1::KindBooks {
                kind: v1::Kind::Exec.into(),
                matched: 1000 + lost,
                queued: 1000,
                lost: vec![v1::StageLoss {
                    stage: v1::LossStage::KernelRing.into(),
                    count: lost,
                }],
                ..Default::default()
            }],
            ..Default::default()
        });
        ledger.totals()
    };
    for (colored, lost, text, red) in [
        (
            true,
            0,
            "books: matched 1,000 = delivered 0 + queued 1,000 + lost 0",
            false,
        ),
        (
            true,
            1234,
            "books: matched 2,234 = delivered 0 + queued 1,000 + lost 1,234 (KERNEL_RING 1,234)",
            true,
        ),
        (
            false,
            1234,
            "books: matched 2,234 = delivered 0 + queued 1,000 + lost 1,234 (KERNEL_RING 1,234)",
            false,
        ),
    ] {
        let mut live = of(None, colored).expect("columns");
        live.news(News::Books(ledger(lost)), &mut Vec::new())
            .expect("drawn");
        let screen = screen(&mut live, 100, 24);
        assert_eq!(lines_of(&screen)[21], text);
        let cell = &screen.backend().buffer()[(0, 21)];
        assert_eq!(cell.fg == Color::Red, red, "{text}");
    }
}

#[test]
fn who_is_not_heard_is_told() {
    let mut live = live();
    let told = |live: &mut Live| {
        let lines = lines(live);
        (lines[1].clone(), lines[22].clone())
    };
    assert_eq!(told(&mut live).0, "0 rows, not connected yet");
    for (news, status, note) in [
        (News::Heard("n1"), "node n1", ""),
        (
            News::Silent("n1", "it broke"),
            "node n1: NOT HEARD",
            "n1: not heard: it broke; trying again",
        ),
        (News::Heard("n1"), "node n1", ""),
        (News::Heard("n2"), "2 nodes", ""),
        (
            News::Silent("n2", "gone"),
            "2 nodes, n2 NOT HEARD",
            "n2: not heard: gone; trying again",
        ),
        (
            News::Silent("n1", "it broke"),
            "2 nodes, 2 NOT HEARD",
            "n1: not heard: it broke; trying again",
        ),
        (
            News::Heard("n1"),
            "2 nodes, n2 NOT HEARD",
            "n2: not heard: gone; trying again",
        ),
        // It was taken out of the cluster.
        (News::Gone("n2"), "node n1", ""),
        (
            News::Silent("n2", "gone"),
            "2 nodes, n2 NOT HEARD",
            "n2: not heard: gone; trying again",
        ),
    ] {
        live.news(news, &mut Vec::new()).expect("drawn");
        assert_eq!(
            told(&mut live),
            (format!("0 rows, {status}"), note.to_owned())
        );
    }
    // What was told since then is worth more.
    writeln!(live.notes(), "first\nlost 3 exec events").expect("notes take all");
    assert_eq!(told(&mut live).1, "lost 3 exec events");
}

#[test]
fn text_cannot_take_over_the_terminal_and_leaves_room_for_numbers() {
    let mut live = live();
    live.at = 1;
    let path = format!("/{}\u{1b}[2J/end", "x".repeat(100));
    opens(&mut live, &"p".repeat(100), &path, 7);
    tick(&mut live);
    let mut drawn = Vec::new();
    live.draw(&mut drawn).expect("a Vec takes all");
    live.draw(&mut drawn).expect("a Vec takes all");
    let drawn = String::from_utf8(drawn).expect("UTF-8");
    assert_eq!(drawn.matches("\u{1b}[2J").count(), 1, "only to begin with");
    let row = rows(&mut live)[0].clone();
    assert!(row.starts_with("shop/pppp"), "{row}");
    assert!(row.contains("… "), "{row}");
    assert!(row.ends_with("[2J/end 7.0 0 0 0"), "{row}");
}

#[test]
fn help_tells_of_the_keys_until_one_is_pressed() {
    let mut live = files();
    press(&mut live, "?");
    let text = lines(&mut live).join("\n");
    for word in [
        "keys",
        "another tab",
        "only the pod of this row",
        "quit, and print the books",
    ] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    press(&mut live, "q");
    assert_eq!(live.mode, Mode::Browse);
}

#[test]
fn what_is_kept_has_a_bound() {
    let mut live = live();
    for turn in 0..3 {
        for number in 0..ROWS_MAX + 5 {
            opens(&mut live, "web", &format!("/{turn}/{number}"), 1);
        }
        tick(&mut live);
    }
    let frame = live.tabs[1].shown();
    assert_eq!(frame.rows(false).len(), ROWS_MAX + 1);
    let total = frame.rows(true);
    assert!(total.len() <= ROWS_MAX + 1);
    let all: u64 = total.values().map(|sums| sums[0]).sum();
    assert_eq!(all, 3 * (ROWS_MAX as u64 + 5), "they are all counted");
    for _ in 0..2 * tab::PAST_MAX {
        tick(&mut live);
    }
    assert_eq!(live.tabs[1].shown().past(None).len(), tab::PAST_MAX);
}

#[test]
fn on_a_wide_screen_more_is_told_of_who_it_was() {
    let mut live = files();
    for node in ["n1", "n2"] {
        live.news(News::Heard(node), &mut Vec::new())
            .expect("drawn");
    }
    let names = |live: &mut Live, width| {
        let line = lines_of(&screen(live, width, 24))[7].clone();
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&mut live, 120)[..4],
        ["NODE", "POD", "CONTAINER", "PATH"]
    );
    // How many there are besides is behind them, also where the rows fill the page.
    assert_eq!(
        names(&mut live, 50),
        ["POD", "PATH", "OPENS/s▼", "WRITES/s", "+3"]
    );
    for number in 0..40 {
        opens(&mut live, "web", &format!("/{number}"), 1);
    }
    tick(&mut live);
    let narrow = lines_of(&screen(&mut live, 50, 24));
    assert!(narrow[7].ends_with(" +2"), "{narrow:#?}");
}

#[test]
fn what_a_node_cannot_tell_is_said_in_its_tab() {
    let mut live = live();
    live.at = 3;
    let told = |live: &mut Live| lines(live)[20].clone();
    let lacking = |node| News::Lacking(node, v1::Kind::BlockLatency, "no tracepoint");
    for (news, line) in [
        (News::Heard("n1"), ""),
        (
            lacking("n1"),
            "block_latency is not available on node n1: no tracepoint",
        ),
        (
            News::Heard("n2"),
            "block_latency is not available on node n1: no tracepoint",
        ),
        (
            lacking("n2"),
            "block_latency is not available on 2 nodes: no tracepoint",
        ),
        (
            News::Gone("n2"),
            "block_latency is not available on node n1: no tracepoint",
        ),
        // It begins anew.
        (News::Heard("n1"), ""),
    ] {
        live.news(news, &mut Vec::new()).expect("drawn");
        assert_eq!(told(&mut live), line);
    }
    live.news(lacking("n1"), &mut Vec::new()).expect("drawn");
    live.at = 1;
    assert_eq!(told(&mut live), "", "others have theirs");
}

#[test]
fn it_is_drawn_at_once_for_keys_and_else_now_and_then() {
    let mut live = live();
    let drawn = |live: &mut Live, what: &dyn Fn(&mut Live, &mut Vec<u8>)| {
        let mut out = Vec::new();
        what(live, &mut out);
        !out.is_empty()
    };
    let node = |name: &'static str| {
        move |live: &mut Live, out: &mut Vec<u8>| live.news(News::Heard(name), out).expect("drawn")
    };
    let poke =
        |poke| move |live: &mut Live, out: &mut Vec<u8>| _ = live.poke(poke, out).expect("drawn");
    assert!(drawn(&mut live, &node("n1")), "for the first time");
    // As if that was just now, however slow this machine is.
    let just_now = Instant::now() + Duration::from_secs(3600);
    live.drawn = Some(just_now);
    assert!(!drawn(&mut live, &node("n2")));
    assert!(!drawn(&mut live, &poke(Poke::Redraw)));
    assert!(drawn(&mut live, &poke(Poke::Key(KeyCode::Tab))));
    live.drawn = Some(just_now);
    assert!(!drawn(&mut live, &node("n3")));
    live.drawn = None;
    assert!(drawn(&mut live, &poke(Poke::Redraw)), "it is time");
    live.drawn = None;
    assert!(!drawn(&mut live, &poke(Poke::Redraw)), "nothing is new");
    writeln!(live.notes(), "lost 3 exec events").expect("notes take all");
    assert!(drawn(&mut live, &poke(Poke::Redraw)));
}
