//! Which node a client of the push door is.

use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::domain::ids::node_of_server_name;

/// The node that a client's verified chain is about. None where it names no node, or more than one: nobody is two nodes.
pub(super) fn node_of(chain: &[Vec<u8>]) -> Option<String> {
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(chain.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok()??;
    let mut nodes = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => node_of_server_name(name),
        _ => None,
    });
    let node = nodes.next()?.to_owned();
    nodes.next().is_none().then_some(node)
}
