//! What a subscriber may be told. Intersected with what it asks for; there is no other place where permissions decide.

use std::collections::HashMap;

use dinle_proto::v1;

use super::Kinds;

/// What may be told of a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// These kinds of events.
    pub watch: Kinds,
    /// Of these, with arguments and paths.
    pub args: Kinds,
}

impl Access {
    /// What either allows.
    pub fn union(self, other: Self) -> Self {
        Self {
            watch: self.watch.union(other.watch),
            args: self.args.union(other.args),
        }
    }

    /// Whether it allows all that the other one does.
    pub fn includes(self, other: Self) -> bool {
        self.union(other) == self
    }
}

/// What a subscriber may be told of each workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Of every workload, and of what is outside pods or not known yet.
    pub everywhere: Access,
    /// Of the pods of namespaces.
    pub namespaces: HashMap<String, Access>,
    /// Kinds of which pods of other namespaces may be named where they are the other end. The empty name stands for all of them.
    pub peers: HashMap<String, Kinds>,
}

impl Grant {
    /// Everything.
    pub fn all() -> Self {
        let all = Kinds(u64::MAX);
        Self {
            everywhere: Access {
                watch: all,
                args: all,
            },
            namespaces: HashMap::new(),
            peers: HashMap::new(),
        }
    }

    /// Whether a pod of that namespace may be named at the other end of something of that kind.
    pub fn names(&self, kind: v1::Kind, namespace: &str) -> bool {
        let own = self.namespaces.get(namespace);
        let peers = |of: &str| self.peers.get(of).copied().unwrap_or_default();
        let known = self
            .everywhere
            .watch
            .union(peers(""))
            .union(peers(namespace));
        known
            .union(own.map_or(Kinds::default(), |own| own.watch))
            .contains(kind)
    }

    /// What may be told of that workload. Of one whose namespace is not known it is what may be told of all.
    pub fn of(&self, workload: &v1::Workload) -> Access {
        let own = self.namespaces.get(&workload.namespace);
        own.map_or(self.everywhere, |own| self.everywhere.union(*own))
    }

    /// Whether nothing may be told of anything.
    pub fn is_empty(&self) -> bool {
        self.all_access().watch.is_empty()
    }

    /// What may be told of some workload or other.
    pub fn all_access(&self) -> Access {
        self.namespaces
            .values()
            .fold(self.everywhere, |all, own| all.union(*own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(namespace: &str) -> v1::Workload {
        v1::Workload {
            namespace: namespace.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_namespace_adds_to_what_holds_everywhere() {
        let kinds = |kinds: &[v1::Kind]| kinds.iter().copied().collect::<Kinds>();
        let (exec, open) = (v1::Kind::Exec, v1::Kind::FileOpen);
        let access = |watch: &[v1::Kind], args: &[v1::Kind]| Access {
            watch: kinds(watch),
            args: kinds(args),
        };
        let grant = Grant {
            everywhere: access(&[exec], &[]),
            namespaces: [("shop".to_owned(), access(&[open], &[open]))].into(),
            peers: [("bank".to_owned(), kinds(&[exec, open]))].into(),
        };
        assert!(grant.names(exec, "till") && grant.names(open, "shop"));
        assert!(grant.names(open, "bank") && !grant.names(open, "till"));
        assert_eq!(grant.of(&of("shop")), access(&[exec, open], &[open]));
        assert_eq!(grant.of(&of("bank")), access(&[exec], &[]));
        // Host processes, and pods that are not known yet.
        assert_eq!(grant.of(&of("")), access(&[exec], &[]));
        assert_eq!(grant.all_access(), access(&[exec, open], &[open]));
        assert!(!grant.is_empty());
        assert!(Grant::default().is_empty());
        assert!(grant.of(&of("shop")).includes(grant.of(&of("bank"))));
        assert!(!grant.of(&of("bank")).includes(grant.of(&of("shop"))));
        assert!(
            Grant::all()
                .of(&of(""))
                .includes(access(&[exec, open], &[exec, open]))
        );
    }
}
