//! Pods that move, and lose nothing.

use kube::ResourceExt as _;

use drover::{
    api::{Outcome, Phase},
    domain::keys,
};

use crate::support::{
    Namespace,
    counter::{assert_contiguous, assert_went_on, lines},
    migrations::{assert_outcome, replacement, status},
    pods::{REDIS, container, counter, counting, pod},
    with_namespace,
};

/// The phases that every migration of a bare pod goes through.
const COURSE: [Phase; 8] = [
    Phase::Preflight,
    Phase::Preparing,
    Phase::Freezing,
    Phase::Checkpointing,
    Phase::Transferring,
    Phase::AwaitingReadiness,
    Phase::Restoring,
    Phase::Finishing,
];

/// Starts one program after another by vfork, and prints each hundredth number. Its environment is so large that the kernel copies it for about half of the
/// time, between vfork and exec: of 200 freezes 87 fell in there.
const STARTS_PROGRAMS: &str = "x=$(head -c 120000 /dev/zero | tr '\\0' x); for i in 1 2 3 4 5 6 7 8 9 10 11 12; do export V$i=$x; done; n=0; \
                               while :; do /bin/true; n=$((n + 1)); [ $((n % 100)) != 0 ] || echo $n; done";

/// Moves a counter by this annotation, and holds it to everything that a move promises.
async fn moves(namespace: &Namespace, pod_name: &str, key: &str, value: &str) {
    namespace.run(&counter(pod_name, "n1", 1, 50)).await;
    let before = namespace.follow(pod_name, "c").await;
    before.beyond(5).await;
    let migration = namespace.ask(pod_name, key, value).await;
    let migration = namespace.until_done(&migration.name_any()).await;
    assert_outcome(&migration, Outcome::Migrated);
    let copy = replacement(&migration);
    let after = namespace.follow(&copy, "c").await;
    after.beyond(before.last() + 5).await;
    assert_went_on(&before.lines(), &after.lines(), &migration);
    assert_eq!(after.lines()[0].number, 1, "kubectl logs of the copy begins where the original began");

    let copy = namespace.pods().get(&copy).await.unwrap();
    assert_eq!(copy.spec.as_ref().unwrap().node_name.as_deref(), Some("n2"));
    assert_eq!(container(&copy, "c").restart_count, 0);
    assert!(namespace.pods().get_opt(pod_name).await.unwrap().is_none(), "the source is gone");
    let status = status(&migration);
    for phase in COURSE {
        let timing = status.phases.iter().find(|timing| timing.phase == phase);
        assert!(timing.is_some_and(|timing| timing.millis.is_some()), "phase {phase} is timed: {:?}", status.phases);
    }
    assert!(status.frozen_millis.is_some_and(|millis| millis > 0 && millis < 20_000), "{:?}", status.frozen_millis);
    namespace.assert_no_leftovers(&migration).await;
}

#[test]
fn an_annotated_pod_moves_and_loses_no_line() {
    with_namespace("moves", |namespace| async move { moves(&namespace, "counter", keys::MIGRATE_TO, "n2").await });
}

#[test]
fn the_bare_key_and_auto_move_too() {
    with_namespace("auto", |namespace| async move { moves(&namespace, "counter", keys::MIGRATE_TO_BARE, keys::AUTO).await });
}

#[test]
fn all_containers_of_a_pod_are_frozen_together_and_restored() {
    const MILLIS: u32 = 50;
    with_namespace("two", |namespace| async move {
        namespace.run(&pod("pair", "n1", &[counting("one", 0, MILLIS), counting("two", 8, MILLIS)])).await;
        let before = [namespace.follow("pair", "one").await, namespace.follow("pair", "two").await];
        before[1].beyond(5).await;
        let migration = namespace.migrate("pair", "n2").await;
        assert_outcome(&migration, Outcome::Migrated);
        let copy = replacement(&migration);
        for (name, before) in ["one", "two"].into_iter().zip(&before) {
            let after = namespace.follow(&copy, name).await;
            after.beyond(before.last() + 3).await;
            assert_went_on(&before.lines(), &after.lines(), &migration);
        }
        let [one, two] = before.map(|follower| follower.lines().last().unwrap().at);
        assert!((one - two).abs() <= i64::from(MILLIS) * 3, "the containers stopped {} ms apart", (one - two).abs());
        namespace.assert_no_leftovers(&migration).await;
    });
}

fn hops(namespace_name: &str, times: usize) {
    with_namespace(namespace_name, |namespace| async move {
        namespace.run(&counter("hopper", "n1", 0, 50)).await;
        let mut name = "hopper".to_owned();
        let mut before = namespace.follow(&name, "c").await;
        before.beyond(3).await;
        for hop in 0..times {
            let migration = namespace.migrate(&name, ["n2", "n1"][hop % 2]).await;
            assert_outcome(&migration, Outcome::Migrated);
            name = replacement(&migration);
            let after = namespace.follow(&name, "c").await;
            after.beyond(before.last() + 3).await;
            assert_went_on(&before.lines(), &after.lines(), &migration);
            namespace.assert_no_leftovers(&migration).await;
            before = after;
        }
        let last = namespace.pods().get(&name).await.unwrap();
        assert_eq!(keys::hops(&last) as usize, times);
        assert!(name.len() == "hopper-123456".len(), "names do not grow: {name}");
        let all = lines(&namespace.logs(&name, "c").await);
        assert_eq!(all[0].number, 1);
        assert_contiguous(&all);
    });
}

#[test]
fn a_counter_hops_there_and_back_and_there_again_and_loses_no_line() {
    hops("hops", 3);
}

mod slow {
    #[test]
    fn a_counter_hops_ten_times_and_loses_no_line() {
        super::hops("hops-ten", 10);
    }
}

/// CRIU cannot seize a process between vfork and exec: the freeze is tried again until there is none. Without that, one of three is caught 4 times of 5.
#[test]
fn programs_that_always_start_others_move() {
    with_namespace("vfork", |namespace| async move {
        let starts = |name: &str| serde_json::json!({"name": name, "image": REDIS, "command": ["sh", "-c", STARTS_PROGRAMS]});
        namespace.run(&pod("starts", "n1", &[starts("a"), starts("b"), starts("c")])).await;
        let migration = namespace.ask("starts", keys::MIGRATE_TO, "n2").await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        for name in ["a", "b", "c"] {
            let copy = replacement(&migration);
            let before = namespace.logs(&copy, name).await.lines().count();
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            let after = namespace.logs(&copy, name).await;
            let numbers: Vec<usize> = after.lines().map(|line| line.parse().unwrap()).collect();
            assert!(numbers.len() > before, "{name} goes on");
            assert_eq!(numbers, (1..=numbers.len()).map(|n| n * 100).collect::<Vec<_>>(), "{name} counts on");
        }
        namespace.assert_no_leftovers(&migration).await;
    });
}
