//! Questions that have one answer.

use super::*;

#[tokio::test]
async fn a_request_that_the_agent_refuses_is_a_usage_error() {
    let Printed { out, err, result } = run(&Fake::default(), "watch --queue-bytes 1").await;
    assert_eq!((out.as_str(), err.as_str()), ("", "queue_bytes: is 1\n"));
    assert_eq!(result.expect("told"), ExitCode::from(EXIT_USAGE));
}

#[tokio::test]
async fn explain_prints_the_plan_and_asks_for_no_stream() {
    let fake = scripted(a_stream());
    let Printed { out, result, .. } = run(&fake, "watch --explain").await;
    assert!(
        out.starts_with("node        node-1\nboot id     b00t\n"),
        "{out}"
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
    let Printed { out, .. } = run(&fake, "execsnoop --explain -o json").await;
    assert!(
        out.starts_with(r#"{"node":"node-1","bootId":"b00t""#),
        "{out}"
    );
    assert_eq!(out.lines().count(), 1);
    assert!(fake.asked.lock().expect("not poisoned").is_empty());
}

#[tokio::test]
async fn workloads_are_listed() {
    let fake = Fake::default();
    let Printed { out, .. } = run(&fake, "workloads").await;
    assert_eq!(
        out,
        "NODE   NAMESPACE POD   CONTAINER OWNER           STATE     CGROUP\n\
         node-1 shop      web-0 app       statefulset/web container /kubepods/a\n"
    );
    let Printed { out, .. } = run(&fake, "workloads -o wide").await;
    let names = "NODE NAMESPACE POD CONTAINER OWNER STATE CONTAINER-ID IMAGE CGROUP";
    assert_eq!(squeezed(&out)[0], names);
    let Printed { out, .. } = run(&fake, "workloads -o json").await;
    assert_eq!(
        out,
        concat!(
            r#"{"cgroupId":"70","cgroupPath":"/kubepods/a","state":"IDENTITY_STATE_CONTAINER","node":"node-1","#,
            r#""namespace":"shop","pod":"web-0","owner":{"kind":"StatefulSet","name":"web"},"container":"app"}"#,
            "\n"
        )
    );
    let Printed { out, err, .. } = run(&fake, "workloads -n other -o json").await;
    assert_eq!((out.as_str(), err.as_str()), ("", "no workload matches\n"));
}

#[tokio::test]
async fn status_is_a_page_or_json() {
    let Printed { out, .. } = run(&Fake::default(), "status").await;
    assert!(
        out.contains("\nnode     node-1\n") && out.contains("\nexec yes "),
        "{out}"
    );
    let Printed { out, .. } = run(&Fake::default(), "status -o json").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["status"]["node"], "node-1");
    assert_eq!(
        value["capabilities"]["capabilities"][1]["kind"],
        "KIND_EXIT"
    );
}
