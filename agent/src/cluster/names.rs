//! What can be named in a cluster, asked for once: for whoever completes a line, where nothing is better than an error.

use std::path::Path;

use dinle_proto::v1;
use k8s_openapi::api::core::v1 as k8s;
use kube::{Api, api::ListParams, config::Kubeconfig};

use super::Cluster;
use crate::workload::Pod;

/// Names of the contexts in a kubeconfig; without one, in that which kubectl would take.
pub fn contexts(kubeconfig: Option<&Path>) -> Vec<String> {
    let read = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let contexts = read.map(|read| read.contexts).unwrap_or_default();
    contexts.into_iter().map(|context| context.name).collect()
}

impl Cluster {
    /// Names of namespaces.
    pub async fn namespaces(&self) -> Vec<String> {
        let api: Api<k8s::Namespace> = Api::all(self.client.clone());
        let listed = api.list_metadata(&ListParams::default()).await;
        let items = listed.map(|list| list.items).unwrap_or_default();
        items
            .into_iter()
            .filter_map(|item| item.metadata.name)
            .collect()
    }

    /// Pods of these namespaces, of all if none is given, with their owners.
    pub async fn pods(&self, namespaces: &[String]) -> Vec<v1::Workload> {
        let list = async |api: Api<k8s::Pod>| {
            // Far less than whole pods are.
            let listed = api.list_metadata(&ListParams::default()).await;
            let items = listed.map(|list| list.items).unwrap_or_default();
            let bare = items.into_iter().map(|item| k8s::Pod {
                metadata: item.metadata,
                ..k8s::Pod::default()
            });
            bare.collect()
        };
        let pods = self.list(namespaces, list).await;
        pods.into_iter().map(|pod| named(pod, None)).collect()
    }

    /// Containers of the pods in these namespaces, of all if none is given.
    pub async fn containers(&self, namespaces: &[String]) -> Vec<v1::Workload> {
        let list = async |api: Api<k8s::Pod>| {
            let listed = api.list(&ListParams::default()).await;
            listed.map(|list| list.items).unwrap_or_default()
        };
        let pods = self.list(namespaces, list).await;
        let containers = pods.into_iter().flat_map(|mut pod| {
            let containers = std::mem::take(&mut pod.containers);
            let names = containers.into_iter().map(|container| container.name);
            names.map(move |name| named(pod.clone(), Some(name)))
        });
        containers.collect()
    }

    async fn list(
        &self,
        namespaces: &[String],
        list: impl AsyncFn(Api<k8s::Pod>) -> Vec<k8s::Pod>,
    ) -> Vec<Pod> {
        let mut places: Vec<Api<k8s::Pod>> = namespaces
            .iter()
            .map(|name| Api::namespaced(self.client.clone(), name))
            .collect();
        if places.is_empty() {
            places.push(Api::all(self.client.clone()));
        }
        let mut pods = Vec::new();
        for place in places {
            pods.extend(list(place).await.into_iter().filter_map(Pod::from_api));
        }
        pods
    }
}

fn named(pod: Pod, container: Option<String>) -> v1::Workload {
    v1::Workload {
        namespace: pod.namespace,
        pod: pod.name,
        owner: pod.owner,
        container: container.unwrap_or_default(),
        ..v1::Workload::default()
    }
}
