//! The controller that owns the pod: it counts its pods by a label, makes one that is missing and deletes one that is too many, as the ReplicaSet and Job
//! controllers of kube-controller-manager do. It decides on what it has read, and acts later. What becomes of pods of its own making is not followed.

use std::collections::BTreeMap;

use drover::{
    api::migration::InDoubt,
    domain::{keys, replacement},
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::{
    intern::Memo,
    model::Drover,
    objects,
    rules::Rule,
    state::{Mig, Object, SourceTask, World, Wrongs},
};

/// What owns the pod.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    ReplicaSet,
    Job,
}

/// How the two pods stand to it, as a manager sees it too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ties {
    pub owner: Owner,
    /// The source has the label by which it is counted, and the copy.
    pub source: bool,
    pub copy: bool,
    /// The source is the cheapest to delete.
    pub surplus: bool,
    /// They are Ready, as their kubelets have said.
    pub source_ready: bool,
    pub copy_ready: bool,
}

/// What is there only where the pod has an owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owned {
    pub ties: Ties,
    /// How many pods it is to have.
    pub wanted: u8,
    /// Pods of its own making.
    pub others: u8,
    pub plan: Option<Plan>,
    /// The source was released or deleted by Drover.
    pub deprived: bool,
    /// A manager has ended between the two effects that hand a Job's pod over.
    pub interrupted: bool,
}

/// What the controller has decided, and not done yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Plan {
    Make,
    Delete(Whom),
}

/// In the order in which the younger of two that are alike comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Whom {
    Copy,
    Other,
    Source,
}

/// The label by which the owner knows its pods.
const TIE: &str = "pod-template-hash";

impl Owner {
    fn reference(self) -> serde_json::Value {
        let (api_version, kind) = match self {
            Self::ReplicaSet => ("apps/v1", "ReplicaSet"),
            Self::Job => ("batch/v1", "Job"),
        };
        json!([{"apiVersion": api_version, "kind": kind, "name": "web", "uid": "set", "controller": true}])
    }

    /// What it selects by.
    pub fn selector() -> BTreeMap<String, String> {
        [("app", "web"), (TIE, "7d4")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }
}

impl Ties {
    /// The source, as it has this owner.
    pub fn source(self, mut pod: Pod) -> Pod {
        pod.metadata.owner_references = serde_json::from_value(self.owner.reference()).expect("references");
        if self.surplus {
            pod.metadata.annotations.get_or_insert_default().insert(keys::DELETION_COST.into(), keys::CHEAPEST.into());
        }
        labelled(pod, self.source, self.source_ready)
    }

    /// The replacement, as it has or has not.
    pub fn copy(self, pod: Pod) -> Pod {
        labelled(pod, self.copy, self.copy_ready)
    }
}

fn labelled(mut pod: Pod, tied: bool, ready: bool) -> Pod {
    let mut labels = Owner::selector();
    labels.retain(|key, _| key != TIE || tied);
    pod.metadata.labels = Some(labels);
    let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }});
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(serde_json::from_value(condition).expect("a condition"));
    pod
}

/// Whether a replacement is its owner's from the start: what [`replacement::build`] leaves of the source's labels.
pub fn is_born_tied(mig: Mig, ties: Ties) -> bool {
    static BORN: Memo<(Mig, Ties), bool> = Memo::new();
    *BORN.ask((mig, ties), |(mig, ties)| {
        let migration = objects::migration(*mig, false, InDoubt::HoldFrozen, false);
        let source = ties.source(objects::source_pod(Object::Live, true, 1).expect("it lives"));
        replacement::build(&source, &migration, &["n2".to_owned()]).metadata.labels.is_some_and(|labels| labels.contains_key(TIE))
    })
}

impl Owned {
    pub fn new(owner: Owner) -> Self {
        let ties = Ties { owner, source: true, copy: false, surplus: false, source_ready: true, copy_ready: false };
        Self { ties, wanted: 1, others: 0, plan: None, deprived: false, interrupted: false }
    }

    /// What is gone has no ties.
    pub fn settle(&mut self, source: Object, copy: bool) {
        if source == Object::Gone {
            (self.ties.source, self.ties.surplus, self.ties.source_ready) = (false, false, false);
        }
        (self.ties.copy, self.ties.copy_ready) = (self.ties.copy && copy, self.ties.copy_ready && copy);
    }

    /// Which one it would rather lose: what is not ready before what is, then the cheaper one, which a Job does not ask, then the younger
    /// (`ActivePodsWithRanks` and `ActivePods` of kube-controller-manager).
    fn victim(&self, active: impl Iterator<Item = Whom>) -> Option<Whom> {
        let ties = self.ties;
        active.min_by_key(|whom| match whom {
            Whom::Copy => (ties.copy_ready, true, *whom),
            Whom::Other => (true, true, *whom),
            Whom::Source => (ties.source_ready, !(ties.surplus && ties.owner == Owner::ReplicaSet), *whom),
        })
    }
}

impl World {
    fn copy_is_live(&self) -> bool {
        self.replacement.is_some_and(|pod| !pod.deleting)
    }

    /// Both pods count at the same time: for a moment, since either the owner or the manager deletes the source then.
    fn counts_both(&self, owned: &Owned) -> bool {
        self.source_pod == Object::Live && owned.ties.source && self.copy_is_live() && owned.ties.copy
    }
}

impl Drover {
    /// The controller counts its pods.
    pub fn owner_looks(&self, world: &mut World) -> Option<()> {
        let owned = world.owned.filter(|owned| owned.plan.is_none())?;
        let source = (world.source_pod == Object::Live && owned.ties.source).then_some(Whom::Source);
        let copy = (world.copy_is_live() && owned.ties.copy).then_some(Whom::Copy);
        let others = std::iter::repeat_n(Whom::Other, owned.others.into());
        let active = || source.into_iter().chain(copy).chain(others.clone());
        let plan = match active().count().cmp(&owned.wanted.into()) {
            std::cmp::Ordering::Less => Plan::Make,
            std::cmp::Ordering::Equal => return None,
            std::cmp::Ordering::Greater => Plan::Delete(owned.victim(active())?),
        };
        // The one that is being moved is there, and is not counted.
        let moved = owned.deprived && world.copy_is_live() && !owned.ties.copy && !owned.interrupted;
        if plan == Plan::Make && moved {
            world.past.wrongs.add(Wrongs::ANOTHER_POD);
        }
        if plan == Plan::Delete(Whom::Copy) && source.is_some() && world.destination.has_a_copy() {
            world.past.wrongs.add(Wrongs::COPY_SURPLUS);
        }
        world.owned = Some(Owned { plan: Some(plan), ..owned });
        Some(())
    }

    /// It does what it has decided.
    pub fn owner_acts(&self, world: &mut World) -> Option<()> {
        let owned = world.owned.as_mut()?;
        match owned.plan.take()? {
            Plan::Make => owned.others += 1,
            Plan::Delete(Whom::Other) => owned.others = owned.others.saturating_sub(1),
            // A user's own hand: else one of the two stays.
            Plan::Delete(Whom::Copy) => {
                world.past.excused |= world.destination.runs() && !world.past.wrongs.has(Wrongs::COPY_SURPLUS);
                if let Some(pod) = &mut world.replacement {
                    pod.deleting = true;
                }
            }
            Plan::Delete(Whom::Source) => {
                let counted = owned.ties.copy;
                if world.source_pod == Object::Live {
                    world.source_pod = Object::Deleting;
                    world.past.excused |= !counted;
                }
            }
        }
        Some(())
    }

    /// The source's kubelet says whether it is Ready: a frozen one that has a readiness probe is not, after a while.
    pub fn source_readiness(&self, world: &mut World) -> Option<()> {
        let tells = world.source.up && !world.source.cut && world.source_pod != Object::Gone;
        let ties = &mut world.owned.as_mut().filter(|_| tells)?.ties;
        let ready = world.source.task == SourceTask::Running;
        (ties.source_ready != ready).then(|| ties.source_ready = ready)
    }

    /// The destination's kubelet says whether the copy is Ready, or the node controller that its node is not.
    pub fn copy_readiness(&self, world: &mut World) -> Option<()> {
        let destination = &world.destination;
        let runs = destination.containers[..self.n].iter().all(|c| c.task.executes());
        let told = destination.up && !destination.cut;
        let mut owned = world.owned.filter(|_| world.replacement.is_some_and(|pod| pod.uid == 1) && (told || !world.node_ready))?;
        let ready = world.node_ready && runs;
        // A node is found to be not Ready after most of a minute; either the owner or the manager has deleted the source by then.
        (ready || !runs || !world.counts_both(&owned)).then_some(())?;
        (owned.ties.copy_ready != ready).then(|| owned.ties.copy_ready = ready)?;
        world.owned = Some(owned);
        Some(())
    }

    /// The copy's readiness probe fails, though it runs.
    pub fn copy_is_unready(&self, world: &mut World) -> Option<()> {
        let mut owned = world.owned.filter(|owned| owned.ties.copy_ready && !world.counts_both(owned))?;
        owned.ties.copy_ready = false;
        world.owned = Some(owned);
        Some(())
    }

    /// A user scales the owner; a Job's parallelism too.
    pub fn owner_is_scaled(&self, world: &mut World, wanted: u8) -> Option<()> {
        let owned = world.owned.as_mut()?;
        (owned.wanted != wanted).then(|| owned.wanted = wanted)
    }

    /// The ties as the manager takes them where a rule is off.
    pub fn seen_ties(&self, world: &World) -> Option<Ties> {
        let mut ties = world.owned?.ties;
        ties.surplus |= self.off(Rule::SourceIsCheapest);
        ties.copy_ready |= self.off(Rule::CopyIsReady);
        ties.source &= !(self.off(Rule::JobLosesFirst) && ties.owner == Owner::Job);
        ties.copy |= self.off(Rule::HandedOverFirst);
        Some(ties)
    }

    pub fn releases_source(&self, world: &mut World) -> bool {
        let Some(owned) = world.owned.as_mut().filter(|owned| world.source_pod != Object::Gone && owned.ties.source) else { return false };
        (owned.ties.source, owned.deprived) = (false, true);
        true
    }

    pub fn marks_surplus(&self, world: &mut World) -> bool {
        let Some(owned) = world.owned.as_mut().filter(|_| world.source_pod != Object::Gone) else { return false };
        owned.ties.surplus = true;
        true
    }

    pub fn hands_over(&self, world: &mut World, uid: u8, ready: bool) -> bool {
        let there = world.replacement.is_some_and(|pod| pod.uid == uid);
        let as_decided = |owned: &&mut Owned| owned.ties.copy_ready || !ready || self.off(Rule::CopyIsReady);
        let Some(owned) = world.owned.as_mut().filter(|_| there).filter(as_decided) else { return false };
        owned.ties.copy = true;
        true
    }

    /// The manager deletes the source: a Job counts one that it knows as failed.
    pub fn owner_loses_source(&self, world: &mut World) {
        // Who deletes the copy deletes the Job's pod.
        let moves = world.copy_is_live();
        if let Some(owned) = &mut world.owned {
            owned.deprived = true;
            if owned.ties.owner == Owner::Job && owned.ties.source && moves {
                world.past.wrongs.add(Wrongs::JOB_FAILED);
            }
        }
    }

    /// A replacement is made.
    pub fn owner_gets_replacement(&self, world: &mut World, mig: Mig) {
        if let Some(owned) = &mut world.owned {
            owned.ties.copy = is_born_tied(mig, owned.ties);
            owned.ties.copy_ready = false;
        }
    }
}
