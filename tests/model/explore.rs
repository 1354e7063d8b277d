//! A breadth-first search over the stateright model that also asks what stateright's own checkers do not: from where no ordinary course leads to an
//! end, and how often a hold is the only one. Its traces are the shortest.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use ahash::RandomState;
use stateright::{Expectation, Model as _, Property};

use crate::{
    action::Action,
    intern::fingerprint,
    model::Drover,
    properties::{self, Rest},
    state::World,
};

/// How far a search goes.
#[derive(Clone, Copy)]
pub struct Bounds<'a> {
    /// States.
    pub states: usize,
    /// Time.
    pub time: Duration,
    pub stop: Stop<'a>,
}

/// Which broken property ends a search.
#[derive(Clone, Copy)]
pub enum Stop<'a> {
    Never,
    AtTheFirst,
    At(&'a str),
}

/// What a search has found.
pub struct Explored {
    pub states: usize,
    pub depth: u32,
    /// Whether every reachable state was seen.
    pub complete: bool,
    pub took: Duration,
    /// Properties that do not hold, each with its shortest trace.
    pub broken: Vec<(&'static str, Vec<Action>)>,
    /// What should be reachable, and was.
    pub reached: Vec<&'static str>,
    /// States in which nothing more happens by itself.
    pub rest: BTreeMap<Rest, usize>,
    /// States that have not ended, and those of them from which only a hold is left.
    pub under_way: usize,
    pub hold_only: usize,
}

/// A state that was met, without the state itself: the trace to it is what is kept.
struct Node {
    parent: u32,
    action: Option<Action>,
    depth: u32,
    kind: Kind,
    decided: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    UnderWay,
    Held,
    Ended,
    /// It was not expanded: nothing is known of what follows.
    Open,
}

/// Explores a model from its first states.
pub fn explore(model: &Drover, bounds: Bounds) -> Explored {
    let began = Instant::now();
    let mut search = Search::new(model);
    let complete = search.run(bounds, began);
    let mut hold_only = 0;
    if !search.has_found(bounds.stop) {
        let ends_or_holds = search.where_it_leads_to(|kind| kind != Kind::UnderWay);
        search.broken.extend(ends_or_holds.iter().position(|reached| !reached).map(|index| (properties::ENDS, index)));
        let ends = search.where_it_leads_to(|kind| matches!(kind, Kind::Ended | Kind::Open));
        hold_only = ends.iter().filter(|ends| !**ends).count();
        let decided = search.nodes.iter().zip(&ends).position(|(node, ends)| node.decided && !ends);
        search.broken.extend(decided.map(|index| (properties::RESOLVES, index)));
    }
    Explored {
        states: search.nodes.len(),
        depth: search.nodes.last().map_or(0, |node| node.depth),
        complete,
        took: began.elapsed(),
        broken: search.broken.iter().map(|(name, index)| (*name, search.trace(*index))).collect(),
        under_way: search.nodes.iter().filter(|node| matches!(node.kind, Kind::UnderWay | Kind::Held)).count(),
        hold_only,
        reached: search.reached,
        rest: search.rest,
    }
}

struct Search<'a> {
    model: &'a Drover,
    safety: Vec<Property<Drover>>,
    /// Hash of a state → its number. Two states of the same 64 bits would be taken for one, as stateright's own checkers do.
    seen: HashMap<u64, u32, RandomState>,
    nodes: Vec<Node>,
    pending: VecDeque<(u32, World)>,
    /// Ordinary steps, backwards: to, from.
    back: Vec<(u32, u32)>,
    broken: Vec<(&'static str, usize)>,
    reached: Vec<&'static str>,
    rest: BTreeMap<Rest, usize>,
}

impl<'a> Search<'a> {
    fn new(model: &'a Drover) -> Self {
        let mut search = Self {
            model,
            safety: properties::of_states(),
            seen: HashMap::default(),
            nodes: vec![],
            pending: VecDeque::new(),
            back: vec![],
            broken: vec![],
            reached: vec![],
            rest: BTreeMap::new(),
        };
        for world in model.init_states() {
            search.meet(world, 0, None);
        }
        search
    }

    /// Whether everything was seen.
    fn run(&mut self, bounds: Bounds, began: Instant) -> bool {
        let mut actions = vec![];
        while let Some((number, world)) = self.pending.pop_front() {
            let over = self.nodes.len() >= bounds.states || (number % 1024 == 0 && began.elapsed() > bounds.time);
            if over || self.has_found(bounds.stop) {
                self.pending.push_front((number, world));
                break;
            }
            self.model.actions(&world, &mut actions);
            let mut rests = true;
            for action in actions.drain(..) {
                let Some(next) = self.model.next_state(&world, action) else { continue };
                let to = self.meet(next, number, Some(action));
                if action.is_ordinary() {
                    rests = false;
                    self.back.push((to, number));
                }
            }
            if rests {
                *self.rest.entry(properties::rest(&world)).or_default() += 1;
            }
        }
        let complete = self.pending.is_empty();
        for (number, _) in self.pending.drain(..) {
            self.nodes[number as usize].kind = Kind::Open;
        }
        complete
    }

    fn has_found(&self, stop: Stop) -> bool {
        match stop {
            Stop::Never => false,
            Stop::AtTheFirst => !self.broken.is_empty(),
            Stop::At(property) => self.broken.iter().any(|(name, _)| *name == property),
        }
    }

    fn meet(&mut self, world: World, parent: u32, action: Option<Action>) -> u32 {
        let number = u32::try_from(self.nodes.len()).expect("fewer than 2^32 states");
        match self.seen.entry(fingerprint(&world)) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(free) => free.insert(number),
        };
        let depth = action.map_or(0, |_| self.nodes[parent as usize].depth + 1);
        self.nodes.push(Node { parent, action, depth, kind: kind(&world), decided: properties::is_decided(self.model, &world) });
        for property in &self.safety {
            let holds = (property.condition)(self.model, &world);
            match property.expectation {
                Expectation::Always if !holds && !self.broken.iter().any(|(name, _)| *name == property.name) => {
                    self.broken.push((property.name, number as usize));
                }
                Expectation::Sometimes if holds && !self.reached.contains(&property.name) => self.reached.push(property.name),
                _ => {}
            }
        }
        if self.model.within_boundary(&world) {
            self.pending.push_back((number, world));
        } else {
            self.nodes[number as usize].kind = Kind::Open;
        }
        number
    }

    /// From which states an ordinary course leads to one of the kind.
    fn where_it_leads_to(&self, kind: impl Fn(Kind) -> bool) -> Vec<bool> {
        let mut first = vec![0_usize; self.nodes.len() + 1];
        for (to, _) in &self.back {
            first[*to as usize + 1] += 1;
        }
        for i in 1..first.len() {
            first[i] += first[i - 1];
        }
        let (mut next, mut from) = (first.clone(), vec![0_u32; self.back.len()]);
        for (to, source) in &self.back {
            from[next[*to as usize]] = *source;
            next[*to as usize] += 1;
        }
        let mut reaches: Vec<bool> = self.nodes.iter().map(|node| kind(node.kind)).collect();
        let mut pending: Vec<usize> = (0..reaches.len()).filter(|i| reaches[*i]).collect();
        while let Some(to) = pending.pop() {
            for source in &from[first[to]..first[to + 1]] {
                let source = *source as usize;
                if !reaches[source] {
                    reaches[source] = true;
                    pending.push(source);
                }
            }
        }
        reaches
    }

    fn trace(&self, index: usize) -> Vec<Action> {
        let mut actions = vec![];
        let mut node = &self.nodes[index];
        while let Some(action) = node.action {
            actions.push(action);
            node = &self.nodes[node.parent as usize];
        }
        actions.reverse();
        actions
    }
}

fn kind(world: &World) -> Kind {
    match () {
        () if properties::has_ended(world) => Kind::Ended,
        () if properties::is_held(world) => Kind::Held,
        () => Kind::UnderWay,
    }
}
