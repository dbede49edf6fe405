//! What a FORK event says, and that there is one for each process and none for threads.

use dinle_e2e::{act::act, stream::Book};
use dinle_proto::v1::{Kind, SubscribeRequest};

use crate::{Lab, run_some, shop};

#[test]
fn a_fork_names_parent_and_child() {
    let lab = Lab::of("process");
    let other = lab.tree.host("other");
    let mut stream = lab.agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::Exec.into(), Kind::Exit.into(), Kind::Fork.into()],
        ..shop()
    });
    let parent = lab.app.succeed(act(["spawn", "23"])).pid;
    other.succeed(act(["spawn", "29"]));
    lab.app.succeed(act(["threads", "8"]));
    let last = run_some(&lab.app, 1);
    stream.through_exit(last);

    let forks: Vec<_> = stream.forks().collect();
    assert_eq!(forks.len(), 23);
    for (_, process, fork) in forks {
        assert_eq!(process.pid, parent);
        let (_, child, _) = stream.exec_of(fork.child_pid);
        assert_eq!(child.ppid, parent);
        assert_eq!(child.pod_pid, fork.child_pod_pid);
        assert_eq!(child.start_boot_ns, fork.child_start_boot_ns);
    }
    assert_eq!(stream.book(Kind::Fork), Book::complete(23));
    assert_eq!(stream.book(Kind::Exec), Book::complete(26));
}
