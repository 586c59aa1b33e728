//! Whose certificates are trusted: the system's authorities, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name. No
//! list of authorities is compiled in: behind a company's proxy it would be the wrong one, and it ages.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};

use crate::config::Env;

/// What a client needs to check a server's certificate.
#[derive(Clone, Debug)]
pub struct Trust {
    /// For `reqwest::ClientBuilder::use_preconfigured_tls`.
    pub config: ClientConfig,
    /// How many authorities are trusted.
    pub authorities: usize,
}

impl Trust {
    /// As the environment says, else as the system does. A system without any certificate is no error: plain HTTP needs none.
    ///
    /// # Errors
    /// What the environment names cannot be read or holds no certificate.
    pub fn from_env(env: &Env) -> Result<Self, String> {
        let (file, folders) = (env.ca_file(), env.ca_folders());
        if file.is_none() && folders.is_empty() {
            return Self::new(load_native_certs());
        }
        let mut all = CertificateResult::default();
        if let Some(file) = &file {
            all.certs.extend(of_file("SSL_CERT_FILE", file)?.certs);
        }
        for folder in &folders {
            std::fs::read_dir(folder).map_err(|error| unreadable("SSL_CERT_DIR", folder, &error))?;
            all.certs.extend(load_certs_from_paths(None, Some(folder)).certs);
        }
        if all.certs.is_empty() {
            return Err(
                "SSL_CERT_DIR names no folder with a certificate in it; put PEM files there, or unset it".to_owned()
            );
        }
        Self::new(all)
    }

    /// The authorities of one PEM file, which `setting` names.
    ///
    /// # Errors
    /// It cannot be read or holds no certificate.
    pub fn of_file(setting: &str, file: &Path) -> Result<Self, String> {
        Self::new(of_file(setting, file)?)
    }

    fn new(found: CertificateResult) -> Result<Self, String> {
        for error in &found.errors {
            tracing::debug!(%error, "a certificate authority was left out");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        let authorities = roots.len();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config, authorities })
    }
}

fn of_file(setting: &str, file: &Path) -> Result<CertificateResult, String> {
    std::fs::File::open(file).map_err(|error| unreadable(setting, file, &error))?;
    let found = load_certs_from_paths(Some(file), None);
    if found.certs.is_empty() {
        let file = file.display();
        return Err(format!(
            "{setting} names {file}, which holds no certificate; it must be a PEM file with `-----BEGIN CERTIFICATE-----`"
        ));
    }
    Ok(found)
}

fn unreadable(setting: &str, path: &Path, error: &std::io::Error) -> String {
    format!(
        "{setting} names {}, which cannot be read ({error}); name the certificates to trust, or unset it",
        path.display()
    )
}
