//! How a stream ends, or goes on.

use super::*;

#[tokio::test]
async fn books_that_do_not_balance_are_a_failure() {
    let script = vec![
        Ok(Message::Plan(v1::Plan::default())),
        Ok(batch(1, vec![exec(70, 1)])),
        Ok(heartbeat(2, 0, v1::EndReason::MaxEvents)),
    ];
    let Printed { err, result, .. } = run(&scripted(script), "watch").await;
    let wrong = "THE BOOKS DO NOT BALANCE: exec: the agent's books say delivered 2, but this client counted 1";
    assert_eq!(
        err,
        format!("{wrong}\nbooks: exec matched 2 = delivered 2 + lost 0\n{wrong}\n")
    );
    assert_eq!(result.expect("told"), ExitCode::FAILURE);
}

#[tokio::test]
async fn an_ending_that_nobody_asked_for_is_a_failure() {
    let plan = || Ok(Message::Plan(v1::Plan::default()));
    let table = [
        (
            vec![plan(), Ok(heartbeat(0, 0, v1::EndReason::Shutdown))],
            "the agent at http://AGENT shuts down",
        ),
        (
            vec![plan(), Ok(heartbeat(0, 0, v1::EndReason::Unspecified))],
            "the stream from the agent at http://AGENT ended without its last books; was the agent killed?",
        ),
        (
            vec![plan(), Err(Status::permission_denied("not any more"))],
            "the agent at http://AGENT refused: not any more (PermissionDenied)",
        ),
    ];
    for (script, expected) in table {
        let Printed { err, result, .. } = run(&scripted(script), "watch --reconnect 0s").await;
        assert!(err.starts_with("books: "), "the books come first: {err}");
        assert_eq!(result.expect_err(expected).to_string(), expected);
    }
}

fn resumable(resumed: bool) -> Result<Message, Status> {
    Ok(Message::Plan(v1::Plan {
        stream_id: 7,
        resume_token: b"secret".to_vec(),
        resumed,
        ..Default::default()
    }))
}

#[tokio::test]
async fn a_connection_that_breaks_is_taken_up_again() {
    let fake = Fake {
        script: vec![
            resumable(false),
            Ok(batch(1, vec![exec(70, 1)])),
            Err(Status::unavailable("broken")),
        ],
        rest: vec![
            resumable(true),
            Ok(batch(2, vec![exec(70, 2), exec(70, 3)])),
            Ok(heartbeat(3, 0, v1::EndReason::MaxEvents)),
        ],
        ..Fake::default()
    };
    let Printed { out, err, result } = run(&fake, "watch").await;
    assert_eq!(out.lines().count(), 4, "a header and three events: {out}");
    let lines: Vec<&str> = err.lines().collect();
    assert!(
        lines[0].ends_with("broken (Unavailable); trying again"),
        "{err}"
    );
    assert!(lines[1].starts_with("connected again after "), "{err}");
    assert_eq!(lines[2..], ["books: exec matched 3 = delivered 3 + lost 0"]);
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
    let asked = fake.asked.lock().expect("not poisoned").clone();
    let resume = v1::Resume {
        stream_id: 7,
        token: b"secret".to_vec(),
        // The plan and the batch.
        received: 2,
    };
    assert_eq!(asked.len(), 2);
    assert_eq!(
        asked[0].resume_window.map(|window| window.seconds),
        Some(30)
    );
    let expected = v1::SubscribeRequest {
        resume: Some(resume),
        ..Default::default()
    };
    assert_eq!(asked[1], expected);
    let left = fake.left.lock().expect("not poisoned").clone();
    assert_eq!(
        (left.len(), left[0].stream_id),
        (1, 7),
        "nobody comes again"
    );
}

#[tokio::test]
async fn a_stream_is_left_also_before_anything_of_it_was_read() {
    let fake = scripted(vec![resumable(false)]);
    let address = format!("http://{}", serve(fake.clone()).await);
    let channel = tonic::transport::Endpoint::from_shared(address).expect("an address");
    let mut client = client_on(channel.connect_lazy(), None).expect("no token");
    let place = Place::On("node-1".to_owned());
    let asked = v1::SubscribeRequest::default;
    let lasting = || Lasting::new(asked(), std::time::Duration::from_secs(30));
    let left = || fake.left.lock().expect("not poisoned").len();

    let mut one = lasting();
    let begun = one
        .begin(asked(), &mut client, &place, std::future::pending())
        .await;
    let mut messages = begun.expect("it begins").expect("nobody stops it");
    one.leave(&mut client, &mut messages).await;
    assert_eq!(left(), 1);

    // Stopped before the answer came.
    let begun = lasting()
        .begin(asked(), &mut client, &place, std::future::ready(()))
        .await;
    if let Some(mut messages) = begun.expect("no error") {
        // Or just behind it.
        one = lasting();
        one.leave(&mut client, &mut messages).await;
    }
    assert_eq!(left(), 2);
}

#[tokio::test]
async fn who_has_all_that_was_asked_for_begins_nothing_anew() {
    let script = vec![
        resumable(false),
        Ok(batch(1, vec![exec(70, 1), exec(70, 2)])),
        Err(Status::unavailable("broken")),
    ];
    let fake = scripted(script);
    let Printed { out, err, result } = run(&fake, "watch --count 2").await;
    assert_eq!(out.lines().count(), 3, "a header and two events: {out}");
    assert_eq!(fake.asked.lock().expect("not poisoned").len(), 1, "{err}");
    // Without the last books nobody can say that nothing was lost.
    assert!(result.expect_err("no books").to_string().contains("broken"));
}

#[tokio::test]
async fn an_agent_that_is_back_too_late_is_told_as_that() {
    let fake = Fake {
        script: vec![resumable(false), Err(Status::unavailable("broken"))],
        gone: 1,
        ..Fake::default()
    };
    // It is over before another connection is tried.
    let Printed { result, .. } = run(&fake, "watch --duration 199ms").await;
    let error = result.expect_err("no books").to_string();
    assert!(
        error.contains("does not have the stream any more"),
        "{error}"
    );
}

#[tokio::test]
async fn where_the_stream_is_gone_another_one_begins_with_books_of_its_own() {
    let fake = Fake {
        script: vec![
            resumable(false),
            Ok(batch(1, vec![exec(70, 1), exec(70, 2)])),
            Ok(heartbeat(2, 0, v1::EndReason::Shutdown)),
        ],
        // The agent that comes next has none of these, and then one of them all the same.
        gone: 1,
        rest: vec![
            resumable(true),
            Ok(heartbeat(2, 0, v1::EndReason::MaxEvents)),
        ],
        ..Fake::default()
    };
    let Printed { err, result, .. } = run(&fake, "watch --count 5").await;
    let asked = fake.asked.lock().expect("not poisoned").clone();
    // A stream; it is not there any more; another one, of what is left; and that goes on.
    let asked: Vec<(bool, u64)> = asked
        .iter()
        .map(|asked| (asked.resume.is_some(), asked.max_events))
        .collect();
    assert_eq!(asked, [(false, 5), (true, 0), (false, 3), (true, 0)]);
    assert!(err.contains("shuts down; trying again"), "{err}");
    assert!(err.contains("what happened meanwhile is not told"), "{err}");
    let books = "books: exec matched 2 = delivered 2 + lost 0";
    assert_eq!(
        err.lines().filter(|line| *line == books).count(),
        2,
        "{err}"
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
}

/// Takes nothing, as a pipe whose reader is gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    for line in ["watch", "watch -o json", "workloads", "status"] {
        let address = serve(scripted(a_stream())).await.to_string();
        let mut arguments: Vec<_> = line.split(' ').collect();
        arguments.extend(["--address", &address]);
        let mut err = Vec::new();
        let mut screen = Screen {
            out: &mut Closed,
            err: &mut err,
            look: Look::default(),
            err_colored: false,
        };
        let result = run_on(parse(&arguments).expect(line), &mut screen).await;
        assert_eq!(result.expect(line), ExitCode::SUCCESS, "{line}");
        let err = String::from_utf8(err).expect("UTF-8");
        assert!(!err.contains("books"), "quietly: {err}");
    }
}

/// Follows messages that come without a network, so that the clock may be paused.
async fn followed(
    messages: impl Stream<Item = Result<v1::SubscribeResponse, Status>>,
    stop: impl Future<Output = ()>,
) -> Printed {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut screen = plain(&mut out, &mut err);
    let table = EventTable::watch(&[v1::Kind::Exec], false, Look::default(), false);
    let mut view = View::new(Format::Table(table));
    let ending: Ending = follow(
        messages,
        stop,
        tokio_stream::pending(),
        &mut view,
        &mut screen,
    )
    .await
    .expect("a Vec takes all");
    let result = view.finish(ending, &Place::On("node-1".to_owned()), &mut screen);
    Printed {
        out: String::from_utf8(out).expect("UTF-8"),
        err: String::from_utf8(err).expect("UTF-8"),
        result,
    }
}

fn three_messages() -> impl Stream<Item = Result<v1::SubscribeResponse, Status>> {
    let messages = [
        batch(1, vec![exec(70, 1)]),
        heartbeat(1, 0, v1::EndReason::Unspecified),
        batch(2, vec![exec(70, 2), exec(70, 3)]),
    ];
    tokio_stream::iter(messages.map(response).map(Ok))
}

#[tokio::test]
async fn an_interruption_prints_the_books_and_what_came_since() {
    let (interrupt, interrupted) = tokio::sync::oneshot::channel();
    let mut interrupt = Some(interrupt);
    // Interrupts once all messages were taken, and then stays silent.
    let messages = three_messages().chain(futures::stream::poll_fn(move |_| {
        if let Some(interrupt) = interrupt.take() {
            interrupt.send(()).expect("somebody waits");
        }
        std::task::Poll::Pending
    }));
    let stop = async { interrupted.await.expect("sent") };
    let Printed { out, err, result } = followed(messages, stop).await;
    assert_eq!(out.lines().count(), 3);
    assert_eq!(
        err,
        "books: exec matched 1 = delivered 1 + lost 0\n\
         not in these books yet: delivered exec 2\n"
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed() {
    let began = tokio::time::Instant::now();
    let messages = three_messages().chain(futures::stream::pending());
    let Printed { result, err, .. } = followed(messages, std::future::pending()).await;
    assert_eq!(began.elapsed().as_secs(), 10);
    assert!(
        err.starts_with("books: exec matched 1 = delivered 1"),
        "{err}"
    );
    assert_eq!(
        result.expect_err("silence").to_string(),
        "no sign of life from the agent for 10 s (3 heartbeats missed)"
    );
}
