//! What is wanted of TLS → the side of a server, its files read.

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version,
};

use super::format::{Clients, Tls, Version, Wrong};
use crate::host::guarded;

/// Bytes of a file of certificates, or of a key.
const LONGEST: usize = 1 << 20;

/// Reads the files, and checks that certificate and key belong together.
pub(super) fn server(tls: &Tls) -> Result<Arc<ServerConfig>, Wrong> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("cert_file", &tls.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read("key_file", &tls.key)?)
        .map_err(|_| wrong("key_file", &tls.key, "has no private key (PEM) in it"))?;
    let verifier = match &tls.clients {
        Clients::Any => WebPkiClientVerifier::no_client_auth(),
        Clients::RightIfGiven(ca) => verifier(ca, &provider, true)?,
        Clients::Right(ca) => verifier(ca, &provider, false)?,
    };
    let versions: &[&SupportedProtocolVersion] = match (tls.least, tls.most) {
        (Version::Tls12, Version::Tls12) => &[&version::TLS12],
        (Version::Tls13, _) => &[&version::TLS13],
        (Version::Tls12, Version::Tls13) => &[&version::TLS13, &version::TLS12],
    };
    let built = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key));
    let mut server = built.map_err(|error| {
        wrong("key_file", &tls.key, &format!("does not go with {}: {error}", tls.certificate.display()))
    })?;
    server.ignore_client_order = tls.own_order;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(server))
}

fn verifier(
    ca: &Path,
    provider: &Arc<rustls::crypto::CryptoProvider>,
    if_given: bool,
) -> Result<Arc<dyn ClientCertVerifier>, Wrong> {
    const KEY: &str = "client_ca_file";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(KEY, ca)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(KEY, ca, &format!("has a certificate that is no CA's: {error}")))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if if_given { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|error| wrong(KEY, ca, &error.to_string()))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let text = read(key, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(wrong(key, path, "has no certificate (PEM) in it")),
        Err(error) => Err(wrong(key, path, &format!("is no PEM: {error}"))),
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Wrong> {
    guarded::read(path, LONGEST).map_err(|why| wrong(key, path, &why))
}

fn wrong(key: &'static str, path: &Path, why: &str) -> Wrong {
    Wrong { line: None, key: Some(key), message: format!("{} {why}", path.display()) }
}
