//! Plans and capabilities as pages to read.

use std::io::{self, Write};

use dinle_proto::v1;

use super::{
    columns::Who,
    look::{Look, Tone},
    table::Table,
    text::{self, NONE},
};

/// What a user should know of a plan before the first event, a sentence each.
pub(super) fn warnings(plan: &v1::Plan) -> Vec<(Tone, String)> {
    let notes = plan
        .notes
        .iter()
        .map(|note| (Tone::Aside, format!("note: {note}")));
    let missing = plan.capabilities.iter().filter(|kind| !kind.available);
    let missing = missing.map(|capability| {
        let sentence = format!(
            "{} is not available on this node: {}",
            text::kind(capability.kind),
            text::or_none(&capability.reason)
        );
        (Tone::Alarm, sentence)
    });
    notes.chain(missing).collect()
}

/// Prints all that a plan says.
pub(super) fn plan(plan: &v1::Plan, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let v1::Plan {
        node,
        boot_id,
        version,
        stream_id: _,
        workloads: listed,
        workloads_total,
        capabilities: kinds,
        notes,
        queue_bytes,
        heartbeat_interval,
        max_events_per_second,
        // What a client makes of a broken connection is its own matter.
        resume_token: _,
        resume_window: _,
        resumed: _,
    } = plan;
    let mut facts = vec![
        ("node", text::or_none(node).to_owned()),
        ("boot id", text::or_none(boot_id).to_owned()),
        ("agent", text::or_none(version).to_owned()),
        ("queue", format!("{} bytes", text::thousands(*queue_bytes))),
        (
            "heartbeat",
            format!("every {}", text::seconds(heartbeat_interval.as_ref())),
        ),
        (
            "workloads",
            format!("{} match now", text::thousands(u64::from(*workloads_total))),
        ),
    ];
    if *max_events_per_second > 0 {
        let rate = text::thousands(u64::from(*max_events_per_second));
        facts.push(("rate limit", format!("{rate} events a second")));
    }
    print_facts(&facts, out)?;
    for note in notes {
        writeln!(out, "note: {}", text::clean(note))?;
    }
    writeln!(out)?;
    capabilities(kinds, look, out)?;
    if !listed.is_empty() {
        writeln!(out)?;
        workloads(listed, false, look, out)?;
    }
    let more = (*workloads_total as usize).saturating_sub(listed.len());
    if more > 0 {
        writeln!(
            out,
            "… and {} more; `dinle workloads` lists all",
            text::thousands(more as u64)
        )?;
    }
    Ok(())
}

/// Prints names and values, a line each.
pub(super) fn print_facts(facts: &[(&str, String)], out: &mut dyn Write) -> io::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts {
        writeln!(out, "{name:width$}  {}", text::clean(value))?;
    }
    Ok(())
}

/// Prints which kinds this kernel offers, by which hooks, and what it refused.
pub(super) fn capabilities(
    kinds: &[v1::Capability],
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut rows = Vec::new();
    for capability in kinds {
        let v1::Capability {
            kind,
            available,
            reason,
            hooks,
            limits: _,
        } = capability;
        let mut row = |hook: &str, way: &str, why: &str| {
            rows.push(vec![
                text::kind(*kind),
                if *available { "yes" } else { "NO" }.to_owned(),
                text::or_none(hook).to_owned(),
                text::or_none(way).to_owned(),
                text::or_none(why).to_owned(),
            ]);
        };
        if !*available || hooks.is_empty() {
            row(NONE, NONE, reason);
        }
        for hook in hooks {
            let refused: Vec<_> = hook
                .ways
                .iter()
                .filter(|way| !way.reason.is_empty())
                .map(|way| format!("{}: {}", way.name, way.reason))
                .collect();
            row(&hook.name, &hook.chosen, &refused.join("; "));
        }
    }
    Table::print(
        &["KIND", "AVAILABLE", "HOOK", "WAY", "REFUSED"],
        &rows,
        look,
        out,
    )?;
    for capability in kinds {
        for limit in &capability.limits {
            writeln!(
                out,
                "limit of {}: {}",
                text::kind(capability.kind),
                text::clean(limit)
            )?;
        }
    }
    Ok(())
}

/// Prints workloads, one a line; `wide` with more columns.
pub(super) fn workloads(
    workloads: &[v1::Workload],
    wide: bool,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let row = |workload: &v1::Workload| {
        let Who {
            node,
            namespace,
            pod,
            container,
            container_id,
        } = Who::new(workload, NONE);
        let owner = match &workload.owner {
            Some(v1::Owner { kind, name }) => format!("{}/{name}", kind.to_lowercase()),
            None => NONE.to_owned(),
        };
        let mut cells = vec![
            node,
            namespace,
            pod,
            container,
            owner,
            text::state(workload.state),
        ];
        if wide {
            cells.extend([container_id, text::or_none(&workload.image).to_owned()]);
        }
        cells.push(text::or_none(&workload.cgroup_path).to_owned());
        cells
    };
    let rows: Vec<_> = workloads.iter().map(row).collect();
    let mut names = vec!["NODE", "NAMESPACE", "POD", "CONTAINER", "OWNER", "STATE"];
    if wide {
        names.extend(["CONTAINER-ID", "IMAGE"]);
    }
    names.push("CGROUP");
    Table::print(&names, &rows, look, out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Both sides of a capability: one kind works by a fallback, the other not at all.
    pub(in super::super) fn both_capabilities() -> Vec<v1::Capability> {
        let way = |name: &str, reason: &str| v1::Way {
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        vec![
            v1::Capability {
                kind: v1::Kind::Exec.into(),
                available: true,
                reason: String::new(),
                hooks: vec![v1::Hook {
                    name: "sched_process_exec".to_owned(),
                    chosen: "raw_tracepoint".to_owned(),
                    ways: vec![way("tp_btf", "no BTF"), way("raw_tracepoint", "")],
                }],
                limits: vec!["failed execs are not seen".to_owned()],
            },
            v1::Capability {
                kind: v1::Kind::Exit.into(),
                available: false,
                reason: "no way to attach".to_owned(),
                hooks: vec![v1::Hook {
                    name: "sched_process_exit".to_owned(),
                    chosen: String::new(),
                    ways: vec![way("tp_btf", "no BTF"), way("kprobe", "not permitted")],
                }],
                limits: vec![],
            },
        ]
    }

    pub(in super::super) fn a_plan() -> v1::Plan {
        v1::Plan {
            node: "node-1".to_owned(),
            boot_id: "b00t".to_owned(),
            version: "0.1.0".to_owned(),
            workloads: vec![v1::Workload {
                node: "node-1".to_owned(),
                cgroup_id: 70,
                cgroup_path: "/kubepods/a".to_owned(),
                state: v1::IdentityState::Container.into(),
                namespace: "shop".to_owned(),
                pod: "web-0".to_owned(),
                container: "app".to_owned(),
                owner: Some(v1::Owner {
                    kind: "StatefulSet".to_owned(),
                    name: "web".to_owned(),
                }),
                ..Default::default()
            }],
            workloads_total: 1501,
            capabilities: both_capabilities(),
            notes: vec!["the pod source is not synced yet".to_owned()],
            queue_bytes: 4 << 20,
            max_events_per_second: 1000,
            heartbeat_interval: Some(prost_types::Duration {
                seconds: 3,
                nanos: 0,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_plan_is_a_page() {
        let mut out = Vec::new();
        plan(&a_plan(), Look::default(), &mut out).expect("a Vec takes all");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "\
node        node-1
boot id     b00t
agent       0.1.0
queue       4,194,304 bytes
heartbeat   every 3.000s
workloads   1,501 match now
rate limit  1,000 events a second
note: the pod source is not synced yet

KIND AVAILABLE HOOK               WAY            REFUSED
exec yes       sched_process_exec raw_tracepoint tp_btf: no BTF
exit NO        -                  -              no way to attach
exit NO        sched_process_exit -              tp_btf: no BTF; kprobe: not permitted
limit of exec: failed execs are not seen

NODE   NAMESPACE POD   CONTAINER OWNER           STATE     CGROUP
node-1 shop      web-0 app       statefulset/web container /kubepods/a
… and 1,500 more; `dinle workloads` lists all
"
        );
    }

    #[test]
    fn warnings_are_notes_and_what_is_not_available() {
        assert_eq!(
            warnings(&a_plan()),
            [
                (
                    Tone::Aside,
                    "note: the pod source is not synced yet".to_owned()
                ),
                (
                    Tone::Alarm,
                    "exit is not available on this node: no way to attach".to_owned()
                ),
            ]
        );
        assert_eq!(warnings(&v1::Plan::default()), []);
    }
}
