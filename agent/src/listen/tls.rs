//! Certificates: read from files, and read again when those change. Connections that are open keep what they began with.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::task::spawn_blocking;
use tokio_rustls::TlsAcceptor;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::Subject;

/// How often the files are looked at: the kubelet changes those of a Secret within a minute or so.
const LOOK: Duration = Duration::from_secs(5);

/// Where certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Who signs clients' certificates, PEM. `None`: clients show none.
    pub client_ca: Option<PathBuf>,
    /// A client may also show none: it is asked for something else.
    pub client_may_show_none: bool,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file has something else in it.
    #[error("{} has no {what} in PEM: {error}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
        /// What is wrong.
        error: String,
    },
    /// Certificate and key are not of each other.
    #[error("the key in {} is not that of the certificate in {}: {error}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        error: rustls::Error,
    },
    /// The client CA cannot be used.
    #[error("{} is no CA for clients: {error}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What rustls says.
        error: VerifierBuilderError,
    },
}

/// What the files said.
struct Loaded {
    config: Arc<ServerConfig>,
    /// Seconds since 1970 when the first of the chain ends.
    expires: i64,
}

/// Content of the files, to see whether it changed.
#[derive(PartialEq, Eq)]
pub(super) struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(&self) -> Result<Content, TlsError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| TlsError::Unreadable {
                path: path.to_owned(),
                error,
            })
        };
        Ok(Content {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn load(&self, content: &Content) -> Result<Loaded, TlsError> {
        let chain = certificates(&self.certificate, &content.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|error| TlsError::Pem {
            path: self.key.clone(),
            what: "private key",
            error: error.to_string(),
        })?;
        let (_, first) = X509Certificate::from_der(&chain[0]).map_err(|error| TlsError::Pem {
            path: self.certificate.clone(),
            what: "certificate",
            error: error.to_string(),
        })?;
        let expires = first.validity().not_after.timestamp();
        let provider = Arc::new(ring::default_provider());
        let mismatch = |error| TlsError::Mismatch {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            error,
        };
        let pair = CertifiedKey::from_der(chain, key, &provider).map_err(mismatch)?;
        pair.keys_match().map_err(mismatch)?;
        let verifier = match (&self.client_ca, &content.client_ca) {
            (Some(path), Some(pem)) => {
                let bad = |error| TlsError::ClientCa {
                    path: path.clone(),
                    error,
                };
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, pem)? {
                    roots.add(authority).map_err(|error| TlsError::Pem {
                        path: path.clone(),
                        what: "certificate of an authority",
                        error: error.to_string(),
                    })?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
                let verifier = match self.client_may_show_none {
                    true => verifier.allow_unauthenticated(),
                    false => verifier,
                };
                verifier.build().map_err(bad)?
            }
            _ => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(mismatch)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A session that is taken up again is not asked for its certificate anew, which may have ended meanwhile; and streams are long.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Loaded {
            config: Arc::new(config),
            expires,
        })
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |error: String| TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        error,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad("there is none in it".to_owned()));
    }
    Ok(chain)
}

impl Subject {
    /// Whom a certificate names, which is in DER.
    pub fn of(certificate: &[u8]) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| format!("the client's certificate cannot be read: {error}"))?;
        let name = parsed.subject();
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            let text = value.as_str().map(str::to_owned);
            let text = text.map_err(|error| {
                format!("a name in the client's certificate is no text: {error}")
            })?;
            // Nobody is granted anything under it, and who checks it may take it for no name at all.
            match text.is_empty() {
                true => Err("a name in the client's certificate is empty".to_owned()),
                false => Ok(text),
            }
        };
        let user = name.iter_common_name().next();
        let user =
            user.ok_or("the client's certificate has no common name, which would be the user")?;
        Ok(Self {
            user: text(user)?,
            groups: name
                .iter_organization()
                .map(text)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The certificates in use.
pub struct State {
    files: Files,
    config: ArcSwap<ServerConfig>,
    expires: AtomicU64,
    reload_failures: AtomicU64,
    handshake_failures: AtomicU64,
}

impl State {
    /// Reads the files, and again when they change, for as long as somebody holds the state. Files that are wrong later are told in
    /// the log, and the old ones stay in use.
    pub fn open(files: Files) -> Result<Arc<Self>, TlsError> {
        let content = files.read()?;
        let Loaded { config, expires } = files.load(&content)?;
        let state = Arc::new(Self {
            files,
            config: ArcSwap::new(config),
            expires: AtomicU64::new(expires.max(0) as u64),
            reload_failures: AtomicU64::new(0),
            handshake_failures: AtomicU64::new(0),
        });
        let watched = Arc::downgrade(&state);
        tokio::spawn(async move {
            let mut content = Ok(content);
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(state) = watched.upgrade() else {
                    return;
                };
                // Files may be slow.
                let looked = spawn_blocking(move || state.look(content)).await;
                content = looked.unwrap_or_else(|error| Err(error.to_string()));
            }
        });
        Ok(state)
    }

    /// Looks at the files. `before` is what they said at the last look: the content, or what was wrong.
    pub(super) fn look(&self, before: Result<Content, String>) -> Result<Content, String> {
        let content = match self.files.read() {
            Ok(content) => content,
            Err(error) => return Err(self.fail(before, &error)),
        };
        if before.as_ref() == Ok(&content) {
            return before;
        }
        match self.files.load(&content) {
            Ok(Loaded { config, expires }) => {
                self.config.store(config);
                self.expires.store(expires.max(0) as u64, Ordering::Relaxed);
                tracing::info!(certificate = %self.files.certificate.display(), expires, "new connections get the new certificate");
                Ok(content)
            }
            Err(error) => Err(self.fail(before, &error)),
        }
    }

    /// Tells it once.
    fn fail(&self, before: Result<Content, String>, error: &TlsError) -> String {
        let told = error.to_string();
        if before.as_ref().err() != Some(&told) {
            self.reload_failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                error = told,
                "the certificate is not renewed: the old one stays in use"
            );
        }
        told
    }

    /// For the next handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    pub(super) fn refused(&self) {
        self.handshake_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Seconds since 1970 when the certificate in use ends.
    pub fn expires(&self) -> u64 {
        self.expires.load(Ordering::Relaxed)
    }

    /// How often files were wrong when they had changed.
    pub fn reload_failures(&self) -> u64 {
        self.reload_failures.load(Ordering::Relaxed)
    }

    /// Connections that did not become TLS.
    pub fn handshake_failures(&self) -> u64 {
        self.handshake_failures.load(Ordering::Relaxed)
    }
}
