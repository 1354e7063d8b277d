//! Pods of Jobs: the copy is counted in the source's place, the work is done once, and the Job ends as if nothing had happened.

use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::json;

use drover::api::Outcome;

use crate::support::{
    migrations::{assert_outcome, replacement, status, to},
    pods::REDIS,
    with_namespace,
};

/// The work: as many lines as this, in about half a minute; the count is in memory alone.
const LINES: usize = 250;

fn indexed() -> Job {
    let work = format!("n=0; while [ $n -lt {LINES} ]; do n=$((n + 1)); echo $n; sleep 0.1; done");
    let n1 = json!({"weight": 100, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}});
    serde_json::from_value(json!({"metadata": {"name": "work"}, "spec": {
        "completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimit": 0,
        "template": {"spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": REDIS, "command": ["sh", "-c", work]}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [n1]}}}}}}))
    .unwrap()
}

#[test]
fn a_pod_of_an_indexed_job_moves_and_its_work_is_done_once() {
    with_namespace("job", |namespace| async move {
        let jobs: Api<Job> = Api::namespaced(namespace.client.clone(), &namespace.name);
        jobs.create(&PostParams::default(), &indexed()).await.unwrap();
        let pods = namespace.until_ready(2).await;
        let moved = pods.iter().find(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")).expect("one runs on n1").name_any();

        let migration = namespace.make(to(&moved, "n2")).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        eprintln!("a pod of a Job: frozen {:?} ms", status(&migration).frozen_millis);
        let copy = replacement(&migration);
        let owner = namespace.until_pod(&copy, "belongs to the Job", |pod| pod.is_some_and(|pod| !pod.owner_references().is_empty())).await;
        assert_eq!(owner.owner_references()[0].kind, "Job");

        let complete = |job: Option<&Job>| {
            let conditions = job.and_then(|job| job.status.as_ref()?.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|c| ["Complete", "Failed"].contains(&c.type_.as_str()) && c.status == "True"))
        };
        let ended = tokio::time::timeout(std::time::Duration::from_mins(2), await_condition(jobs, "work", complete)).await;
        let job = ended.expect("the Job ends within two minutes").unwrap().unwrap().status.unwrap();
        assert_eq!((job.succeeded, job.failed.unwrap_or_default(), job.completed_indexes.as_deref()), (Some(2), 0, Some("0,1")));
        // The log goes along with the process.
        let lines: Vec<usize> = namespace.logs(&copy, "c").await.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(lines, (1..=LINES).collect::<Vec<_>>(), "each line once");
        let left = namespace.pods().list(&ListParams::default()).await.unwrap().items;
        assert_eq!(left.len(), 2, "no third pod was made, and the source is gone: {:?}", left.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
        assert_eq!(namespace.pods_made("Job"), 2);
        namespace.assert_no_leftovers(&migration).await;
    });
}
