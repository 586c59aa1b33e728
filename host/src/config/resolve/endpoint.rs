//! The path of a custom model: one that is the host's to give away.

/// Paths that the host answers itself, or that belong to APIs it speaks.
const HOST_PATHS: [&str; 39] = [
    "/admin",
    "/api",
    "/artifacts",
    "/chat/completions",
    "/completions",
    "/detokenize",
    "/docs",
    "/embeddings",
    "/health",
    "/livez",
    "/logs",
    "/metrics",
    "/models",
    "/openapi.json",
    "/page",
    "/ping",
    "/props",
    "/readyz",
    "/rerank",
    "/responses",
    "/running",
    "/tokenize",
    "/upstream",
    "/v1/audio/generations",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/images",
    "/v1/messages",
    "/v1/models",
    "/v1/moderations",
    "/v1/realtime",
    "/v1/rerank",
    "/v1/jobs",
    "/v1/responses",
];

/// Why a path is no endpoint, and what to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) message: String,
    pub(super) hint: &'static str,
}

/// The path as requests are held against it: without a slash at its end.
pub(super) fn of_its_own(path: &str) -> Result<&str, Unusable> {
    let unusable =
        |message: &str| Err(Unusable { message: message.to_owned(), hint: "write it like /v1/NAME/generate" });
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some(segments) = path.strip_prefix('/') else { return unusable("is not an HTTP path") };
    // What clients write in another way, or leave out.
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.chars().all(|c| c.is_ascii_alphanumeric() || "-._~:@".contains(c))
    };
    if !segments.split('/').all(is_plain) {
        return unusable("is not a plain HTTP path, of letters, digits and `-._~:@` between its slashes");
    }
    let is_above =
        |above: &str, path: &str| path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match HOST_PATHS.into_iter().find(|own| is_above(own, path) || is_above(path, own)) {
        Some(own) if own == path => unusable("is the host's own"),
        Some(own) => unusable(&format!("gets into the way of the host's own {own}")),
        None => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_plain_and_free() {
        for (typed, read) in [
            ("/v1/mymodel/generate", "/v1/mymodel/generate"),
            ("/x/", "/x"),
            ("/v1/audio/mine", "/v1/audio/mine"),
            ("/modelsx", "/modelsx"),
        ] {
            assert_eq!(of_its_own(typed), Ok(read));
        }
        for typed in [
            "", "/", "//", "x", "/a//b", "/a/../b", "/a/.", "/a b", "/a?b", "/a#b", "/a%20b", "/ä", "/a/{id}", "/*",
            "/a//",
        ] {
            assert!(of_its_own(typed).is_err(), "{typed}");
        }
        for typed in ["/v1", "/models", "/models/mine", "/v1/chat/completions", "/v1/chat", "/metrics/", "/admin/x/y"] {
            assert!(of_its_own(typed).unwrap_err().message.contains("the host's own"), "{typed}");
        }
    }
}
