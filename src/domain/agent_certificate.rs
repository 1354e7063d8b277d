//! Whose certificate request is granted: an agent's, for its own node's name and nothing else.

use super::ids::node_server_name;

/// Signer name of the CertificateSigningRequests that Drover's manager answers.
pub const SIGNER: &str = "drover.dev/agent";
/// Key in `spec.extra` in which the API server names the node of a bound service account token (KEP-4193, GA in 1.32).
pub const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
/// Usages that an agent may ask for: it serves `/v2/` and calls other agents.
pub const USAGES: [&str; 4] = ["digital signature", "key encipherment", "server auth", "client auth"];

/// What a certificate request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requested {
    /// DNS names in the subject alternative names.
    pub dns_names: Vec<String>,
    /// Every other subject alternative name, in words (`IP 10.0.0.1`).
    pub other_names: Vec<String>,
    /// Whether it asks to be a CA.
    pub ca: bool,
}

/// Who made the request, as the API server wrote it into the object; users cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requester {
    /// `spec.username`.
    pub username: String,
    /// Values of [`NODE_NAME_EXTRA`] in `spec.extra`.
    pub node_names: Vec<String>,
    /// `spec.usages`.
    pub usages: Vec<String>,
}

/// The node whose agent gets the certificate.
///
/// # Errors
/// Every reason against it.
pub fn judge(requester: &Requester, request: &Requested, agent_username: &str) -> Result<String, Vec<String>> {
    let mut reasons = Vec::new();
    if requester.username != agent_username {
        reasons.push(format!("spec.username is {:?}, and only {agent_username:?} gets certificates of this signer", requester.username));
    }
    if request.ca {
        reasons.push("spec.request asks to be a CA".to_owned());
    }
    for name in &request.other_names {
        reasons.push(format!("spec.request asks for {name}; only a DNS name is granted"));
    }
    for usage in requester.usages.iter().filter(|u| !USAGES.contains(&u.as_str())) {
        reasons.push(format!("spec.usages has {usage:?}; granted are {}", USAGES.join(", ")));
    }
    let node = match requester.node_names.as_slice() {
        [node] if super::ids::is_dns_subdomain(node) => Some(node.clone()),
        [node] => {
            reasons.push(format!("spec.extra[{NODE_NAME_EXTRA}] is {node:?}, which is no node's name"));
            None
        }
        names => {
            reasons.push(format!("spec.extra[{NODE_NAME_EXTRA}] has {} values; it must have one, from a token that is bound to a pod", names.len()));
            None
        }
    };
    if let Some(node) = &node {
        let own = node_server_name(node);
        if request.dns_names != [own.as_str()] {
            reasons
                .push(format!("spec.request asks for the DNS names {:?}; the agent of node {node} gets {own:?} and nothing else", request.dns_names));
        }
    }
    match node {
        Some(node) if reasons.is_empty() => Ok(node),
        _ => Err(reasons),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "system:serviceaccount:drover:drover-agent";

    fn honest() -> (Requester, Requested) {
        let requester = Requester { username: AGENT.to_owned(), node_names: vec!["n1".to_owned()], usages: USAGES.map(str::to_owned).to_vec() };
        (requester, Requested { dns_names: vec!["n1.nodes.drover.dev".to_owned()], ..Requested::default() })
    }

    #[test]
    fn an_agent_gets_its_own_name() {
        let (requester, request) = honest();
        assert_eq!(judge(&requester, &request, AGENT), Ok("n1".to_owned()));
    }

    #[test]
    fn everything_else_is_denied_with_its_reason() {
        type Change = fn(&mut Requester, &mut Requested);
        let cases: [(Change, &str); 10] = [
            (|r, _| r.username = "system:serviceaccount:drover:default".to_owned(), "spec.username is"),
            (|r, _| r.node_names.clear(), "has 0 values"),
            (|r, _| r.node_names.push("n2".to_owned()), "has 2 values"),
            (|r, q| (r.node_names, q.dns_names) = (vec!["*".to_owned()], vec!["*.nodes.drover.dev".to_owned()]), "no node's name"),
            (|r, _| r.usages.push("cert sign".to_owned()), "\"cert sign\""),
            (|_, q| q.dns_names = vec!["n2.nodes.drover.dev".to_owned()], "gets \"n1.nodes.drover.dev\" and nothing else"),
            (|_, q| q.dns_names.push("drover.drover.svc".to_owned()), "nothing else"),
            (|_, q| q.dns_names.clear(), "nothing else"),
            (|_, q| q.other_names.push("IP 10.0.0.1".to_owned()), "asks for IP 10.0.0.1"),
            (|_, q| q.ca = true, "asks to be a CA"),
        ];
        for (change, expected) in cases {
            let (mut requester, mut request) = honest();
            change(&mut requester, &mut request);
            let reasons = judge(&requester, &request, AGENT).expect_err(expected);
            assert!(reasons.len() == 1 && reasons[0].contains(expected), "{expected}: {reasons:?}");
        }
    }
}
