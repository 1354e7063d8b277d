//! Certificates: the CA, leaves for the manager, and the answer to an agent's request. No input or output here.
//!
//! ECDSA P-256 throughout. Every certificate starts five minutes early, since clocks of nodes differ.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use x509_parser::{parse_x509_certificate, pem::parse_x509_pem};

use crate::{
    domain::agent_certificate::Requested,
    ports::front::{AgentSigner, Identity},
};

/// Life of the CA. It is long, since kube-scheduler reads its caFile at its start alone; only leaves rotate.
pub const CA_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// Life of the webhook's certificate.
pub const WEBHOOK_LIFETIME: SignedDuration = SignedDuration::from_hours(30 * 24);
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key could not be made.
    #[error("failed to generate a key")]
    Key(#[source] rcgen::Error),
    /// A certificate or request could not be signed.
    #[error("failed to sign a certificate")]
    Sign(#[source] rcgen::Error),
    /// A name cannot stand in a certificate.
    #[error("failed to put {name:?} into a certificate")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// A key or certificate that was read is none.
    #[error("failed to read {what}: {problem}")]
    Read {
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it; never its content.
        problem: String,
    },
}

fn unreadable(what: &'static str, problem: impl std::fmt::Display) -> Error {
    Error::Read { what, problem: problem.to_string() }
}

/// Drover's certificate authority, with its key.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new CA.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn generate(now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(Error::Key)?;
        let mut params = blank(now, CA_LIFETIME, "drover-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(Error::Sign)?;
        Self::from_pem(&certificate.pem(), &key.serialize_pem())
    }

    /// The CA of a Secret.
    ///
    /// # Errors
    /// Where one of the two cannot be read, they do not belong together, or the certificate is not a CA's.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem).map_err(|e| unreadable("the CA's key", e))?;
        let (_, block) = parse_x509_pem(certificate_pem.as_bytes()).map_err(|e| unreadable("the CA's certificate", e))?;
        let certificate = block.parse_x509().map_err(|e| unreadable("the CA's certificate", e))?;
        if !certificate.is_ca() {
            return Err(unreadable("the CA's certificate", "it is not a CA's"));
        }
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(unreadable("the CA's certificate", "it was made for another key"));
        }
        let (_, not_after) = validity(certificate_pem)?;
        let issuer_key = KeyPair::from_pem(key_pem).map_err(|e| unreadable("the CA's key", e))?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, issuer_key).map_err(|e| unreadable("the CA's certificate", e))?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), key_pem: key_pem.to_owned(), not_after, issuer })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's key, for its Secret alone.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Until when the CA is valid.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// A server's certificate with a new key.
    ///
    /// # Errors
    /// Where a name is none or no key can be made.
    pub fn issue_server(&self, dns_names: &[String], now: Timestamp, lifetime: SignedDuration) -> Result<Identity, Error> {
        let key = KeyPair::generate().map_err(Error::Key)?;
        let mut params = leaf(dns_names, now, lifetime, "drover-manager")?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let chain_pem = self.sign(&params, &key)?;
        let (not_before, not_after) = validity(&chain_pem)?;
        Ok(Identity { chain_pem, key_pem: key.serialize_pem(), ca_pem: self.certificate_pem.clone(), not_before, not_after })
    }

    /// Leaf and CA in PEM.
    fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<String, Error> {
        let certificate = params.signed_by(key, &self.issuer).map_err(Error::Sign)?;
        Ok(format!("{}{}", certificate.pem(), self.certificate_pem))
    }
}

impl AgentSigner for Authority {
    fn read(&self, request_pem: &[u8]) -> Result<Requested, String> {
        Ok(requested(&parse_request(request_pem)?.params))
    }

    fn issue(&self, request_pem: &[u8], dns_name: &str, now: Timestamp, lifetime: SignedDuration) -> Result<String, String> {
        let request = parse_request(request_pem)?;
        let dns_names = [dns_name.to_owned()];
        let mut params = leaf(&dns_names, now, lifetime, "drover-agent").map_err(|e| e.to_string())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, &request.public_key).map_err(|e| e.to_string())
    }
}

fn parse_request(pem: &[u8]) -> Result<CertificateSigningRequestParams, String> {
    let text = std::str::from_utf8(pem).map_err(|_| "spec.request is no PEM".to_owned())?;
    CertificateSigningRequestParams::from_pem(text).map_err(|e| format!("spec.request cannot be read: {e}"))
}

fn requested(params: &CertificateParams) -> Requested {
    let mut requested = Requested { ca: matches!(params.is_ca, IsCa::Ca(_)), ..Requested::default() };
    for name in &params.subject_alt_names {
        match name {
            SanType::DnsName(name) => requested.dns_names.push(name.as_str().to_owned()),
            SanType::IpAddress(address) => requested.other_names.push(format!("IP {address}")),
            SanType::Rfc822Name(mail) => requested.other_names.push(format!("mail address {}", mail.as_str())),
            SanType::URI(uri) => requested.other_names.push(format!("URI {}", uri.as_str())),
            _ => requested.other_names.push("a name of an unknown kind".to_owned()),
        }
    }
    requested
}

/// A key in memory, and the request for a certificate for it.
pub struct KeyAndRequest {
    /// PKCS#8 in PEM; never written anywhere.
    pub key_pem: String,
    /// PKCS#10 in PEM.
    pub request_pem: String,
}

/// A new key and a request for one DNS name.
///
/// # Errors
/// Where no key can be made or the name is none.
pub fn request(dns_name: &str) -> Result<KeyAndRequest, Error> {
    let key = KeyPair::generate().map_err(Error::Key)?;
    let mut params = CertificateParams::new(vec![dns_name.to_owned()]).map_err(|source| Error::Name { name: dns_name.to_owned(), source })?;
    params.distinguished_name = common_name("drover-agent");
    let request = params.serialize_request(&key).map_err(Error::Sign)?;
    let request_pem = request.pem().map_err(Error::Sign)?;
    Ok(KeyAndRequest { key_pem: key.serialize_pem(), request_pem })
}

/// From when until when the first certificate of a PEM text is valid.
///
/// # Errors
/// Where it holds no certificate.
pub fn validity(pem: &str) -> Result<(Timestamp, Timestamp), Error> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|e| unreadable("a certificate", e))?;
    let (_, certificate) = parse_x509_certificate(&block.contents).map_err(|e| unreadable("a certificate", e))?;
    let at = |seconds: i64| Timestamp::from_second(seconds).map_err(|e| unreadable("a certificate", e));
    Ok((at(certificate.validity().not_before.timestamp())?, at(certificate.validity().not_after.timestamp())?))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn leaf(dns_names: &[String], now: Timestamp, lifetime: SignedDuration, name: &str) -> Result<CertificateParams, Error> {
    let mut params = blank(now, lifetime, name);
    for dns_name in dns_names {
        let value = dns_name.as_str().try_into().map_err(|source| Error::Name { name: dns_name.clone(), source })?;
        params.subject_alt_names.push(SanType::DnsName(value));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn blank(now: Timestamp, lifetime: SignedDuration, name: &str) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |at: Timestamp| std::time::Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default());
    let mut params = CertificateParams::default();
    params.not_before = epoch + since_epoch(now - SKEW);
    params.not_after = epoch + since_epoch(now + lifetime);
    // rcgen's default derives the serial from the key; two certificates for one key would share it.
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = common_name(name);
    params
}

#[cfg(test)]
mod tests;
