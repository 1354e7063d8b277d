//! What several tests need: certificates, and a node whose every port is a fake.

mod inside;
mod node;
mod pusher;
mod registry;
mod tls;

pub(crate) use node::{FakeNode, at, second, settled};
pub(crate) use tls::{Ca, Leaf};
#[path = "../tests/contract/bus.rs"]
pub(crate) mod bus_contract;
