//! The certificates of the simulated cluster, made anew for each run.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// Who is who: file name, common name, organisation.
const CLIENTS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("kcm", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kwok", "kwok", "system:masters"),
];

/// Writes certificates, keys and kubeconfigs into a folder; the API server is at `server`.
pub fn make(folder: &Path, server: &str) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = name("scale-ca", "");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.crt", &params.self_signed(&key).unwrap().pem());
    write("ca.key", &key.serialize_pem());
    let ca = Issuer::new(params, key);

    let tokens = KeyPair::generate().unwrap();
    write("sa.key", &tokens.serialize_pem());
    write("sa.pub", &tokens.public_key_pem());

    let leaf = |file: &str, common: &str, organisation: &str, names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = name(common, organisation);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        write(&format!("{file}.crt"), &params.signed_by(&key, &ca).unwrap().pem());
        write(&format!("{file}.key"), &key.serialize_pem());
    };
    leaf("apiserver", "kube-apiserver", "", &["127.0.0.1", "localhost", "10.96.0.1", "kubernetes.default.svc"]);
    for (file, common, organisation) in CLIENTS {
        leaf(file, common, organisation, &[]);
        let at = |end: &str| folder.join(format!("{file}.{end}")).display().to_string();
        write(&format!("{file}.kubeconfig"), &kubeconfig(folder, server, &format!("client-certificate: {}, client-key: {}", at("crt"), at("key"))));
    }
}

/// A kubeconfig for whoever has this credential.
pub fn kubeconfig(folder: &Path, server: &str, credential: &str) -> String {
    let ca = folder.join("ca.crt");
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: scale\n\
         clusters: [{{name: scale, cluster: {{server: \"{server}\", certificate-authority: {ca}}}}}]\n\
         users: [{{name: scale, user: {{{credential}}}}}]\n\
         contexts: [{{name: scale, context: {{cluster: scale, user: scale}}}}]\n",
        ca = ca.display()
    )
}

fn name(common: &str, organisation: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if !organisation.is_empty() {
        name.push(DnType::OrganizationName, organisation);
    }
    name
}
