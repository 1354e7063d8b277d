//! What each door lets through, decided from method and path alone.

use axum::http::{Method, StatusCode};

use crate::domain::{
    ids::{is_dns_subdomain, is_repository},
    memory::goes_past_the_registry,
};

/// What of a repository is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Manifest,
    Blob,
    /// The collection of uploads.
    Uploads,
    /// One upload that has begun.
    Upload,
}

/// The pull door: reading, from one repository.
///
/// # Errors
/// 405 for any other method, 403 for any other place.
pub(super) fn pull(method: &Method, path: &str) -> Result<(), StatusCode> {
    if method != Method::GET && method != Method::HEAD {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    if path == "/v2/" || path == "/v2" {
        return Ok(());
    }
    match parse(path) {
        Some((_, Part::Manifest | Part::Blob)) => Ok(()),
        _ => Err(StatusCode::FORBIDDEN),
    }
}

/// The push door: the repository that must be granted, and what of it.
///
/// # Errors
/// 403 for a place that is not a repository's, 405 for a method that no push needs there.
pub(super) fn push<'a>(method: &Method, path: &'a str) -> Result<(&'a str, Part), StatusCode> {
    let (repository, part) = parse(path).ok_or(StatusCode::FORBIDDEN)?;
    let methods: &[Method] = match part {
        Part::Manifest => &[Method::PUT, Method::HEAD, Method::GET],
        Part::Blob => &[Method::HEAD, Method::GET],
        Part::Uploads => &[Method::POST],
        Part::Upload => &[Method::PATCH, Method::PUT, Method::GET],
    };
    if methods.contains(method) { Ok((repository, part)) } else { Err(StatusCode::METHOD_NOT_ALLOWED) }
}

/// `PUT /memory/drover/<32 hex>/<container>/pages-<n>.img`, or `…/pre-copy.img`: an image with pages, which goes past the registry. None for any other request.
pub(super) fn memory(method: &Method, path: &str) -> Option<(String, String, String)> {
    let (prefix, hex, container, file) = match path.strip_prefix("/memory/")?.split('/').collect::<Vec<_>>().as_slice() {
        [prefix, hex, container, file] => (*prefix, *hex, *container, *file),
        _ => return None,
    };
    let repository = format!("{prefix}/{hex}");
    let plain = is_dns_subdomain(container) && !container.contains('.') && goes_past_the_registry(file);
    (method == Method::PUT && is_repository(&repository) && plain).then(|| (repository, container.to_owned(), file.to_owned()))
}

/// `POST /way/drover/<32 hex>/<container>`: a way to memory that its source has kept. None for any other request.
pub(super) fn way(method: &Method, path: &str) -> Option<(String, String)> {
    let (prefix, hex, container) = match path.strip_prefix("/way/")?.split('/').collect::<Vec<_>>().as_slice() {
        [prefix, hex, container] => (*prefix, *hex, *container),
        _ => return None,
    };
    let repository = format!("{prefix}/{hex}");
    let plain = is_dns_subdomain(container) && !container.contains('.');
    (method == Method::POST && is_repository(&repository) && plain).then(|| (repository, container.to_owned()))
}

/// `/v2/drover/<32 hex>/…`. Nothing is decoded: what the registry might read differently from us (escapes, empty parts, dots) is refused.
fn parse(path: &str) -> Option<(&str, Part)> {
    let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-' | b':' | b'='));
    if !plain || path.contains("..") {
        return None;
    }
    let rest = path.strip_prefix("/v2/")?;
    let (prefix, rest) = rest.split_once('/')?;
    let (hex, rest) = rest.split_once('/')?;
    let repository = path.get("/v2/".len().."/v2/".len() + prefix.len() + 1 + hex.len()).filter(|name| is_repository(name))?;
    let part = match rest.split('/').collect::<Vec<_>>().as_slice() {
        ["manifests", reference] if !reference.is_empty() => Part::Manifest,
        ["blobs", "uploads", ""] => Part::Uploads,
        ["blobs", "uploads", id] if !id.is_empty() => Part::Upload,
        ["blobs", digest] if !digest.is_empty() && *digest != "uploads" => Part::Blob,
        _ => return None,
    };
    Some((repository, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: &str = "drover/0123456789abcdef0123456789abcdef";

    #[test]
    fn the_pull_door_reads_one_repository_only() {
        let at = |rest: &str| format!("/v2/{REPOSITORY}/{rest}");
        for path in ["/v2/".to_owned(), at("manifests/redis"), at("manifests/sha256:00"), at("blobs/sha256:00")] {
            assert_eq!(pull(&Method::GET, &path), Ok(()), "{path}");
            assert_eq!(pull(&Method::HEAD, &path), Ok(()), "{path}");
            for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
                assert_eq!(pull(&method, &path), Err(StatusCode::METHOD_NOT_ALLOWED), "{method} {path}");
            }
        }
        for path in [
            "/v2/_catalog".to_owned(),
            at("tags/list"),
            at("referrers/sha256:00"),
            at("blobs/uploads/1"),
            at("manifests/../../x"),
            at("blobs//sha256:00"),
            at("manifests/%2e%2e"),
            "/v2/drover/0123/manifests/x".to_owned(),
            "/v2/library/redis/manifests/7".to_owned(),
            "/debug/vars".to_owned(),
            "/".to_owned(),
        ] {
            assert_eq!(pull(&Method::GET, &path), Err(StatusCode::FORBIDDEN), "{path}");
        }
    }

    #[test]
    fn memory_goes_to_one_repository_only() {
        let at = |rest: &str| format!("/memory/{REPOSITORY}/{rest}");
        let found = memory(&Method::PUT, &at("app/pages-1.img"));
        assert_eq!(found, Some((REPOSITORY.to_owned(), "app".to_owned(), "pages-1.img".to_owned())));
        assert!(memory(&Method::PUT, &at("app/pre-copy.img")).is_some());
        for (method, path) in [
            (Method::GET, at("app/pages-1.img")),
            (Method::PUT, at("app/core-1.img")),
            (Method::PUT, at("app/../pages-1.img")),
            (Method::PUT, at("app/pages-1.img/x")),
            (Method::PUT, at("%2e%2e/pages-1.img")),
            (Method::PUT, "/memory/library/redis/app/pages-1.img".to_owned()),
            (Method::PUT, "/memory/drover/01/app/pages-1.img".to_owned()),
        ] {
            assert_eq!(memory(&method, &path), None, "{method} {path}");
        }
    }

    #[test]
    fn a_way_goes_to_one_container_only() {
        let at = |rest: &str| format!("/way/{REPOSITORY}{rest}");
        assert_eq!(way(&Method::POST, &at("/app")), Some((REPOSITORY.to_owned(), "app".to_owned())));
        for (method, path) in [
            (Method::GET, at("/app")),
            (Method::POST, at("")),
            (Method::POST, at("/app/x")),
            (Method::POST, at("/..")),
            (Method::POST, "/way/library/redis/app".to_owned()),
        ] {
            assert_eq!(way(&method, &path), None, "{method} {path}");
        }
    }

    #[test]
    fn the_push_door_knows_the_steps_of_a_push() {
        let at = |rest: &str| format!("/v2/{REPOSITORY}/{rest}");
        for (method, rest) in [
            (Method::POST, "blobs/uploads/"),
            (Method::PATCH, "blobs/uploads/0-1"),
            (Method::GET, "blobs/uploads/0-1"),
            (Method::PUT, "blobs/uploads/0-1"),
            (Method::HEAD, "blobs/sha256:00"),
            (Method::PUT, "manifests/redis"),
        ] {
            assert_eq!(push(&method, &at(rest)).map(|(repository, _)| repository), Ok(REPOSITORY), "{method} {rest}");
        }
        for (method, rest) in [
            (Method::DELETE, "manifests/redis"),
            (Method::DELETE, "blobs/sha256:00"),
            (Method::PUT, "blobs/sha256:00"),
            (Method::POST, "blobs/uploads/0"),
            (Method::GET, "blobs/uploads/"),
            (Method::DELETE, "blobs/uploads/0"),
        ] {
            assert_eq!(push(&method, &at(rest)), Err(StatusCode::METHOD_NOT_ALLOWED), "{method} {rest}");
        }
        assert_eq!(push(&Method::GET, "/v2/"), Err(StatusCode::FORBIDDEN));
    }
}
