//! Requests and answers: GET and HEAD of names that are looked up.

use std::sync::Arc;

use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};

use super::files::{FileError, Files};
use crate::http_server::Handler;
use crate::http_server::files::{FileBody, plain, refused_method, send};

impl Handler for Arc<Files> {
    type Body = FileBody;

    async fn answer(&self, request: Request<Limited<Incoming>>) -> Response<FileBody> {
        answer(self.clone(), request).await
    }
}

async fn answer(files: Arc<Files>, request: Request<Limited<Incoming>>) -> Response<FileBody> {
    let (method, headers) = (request.method().clone(), request.headers().clone());
    if let Some(refused) = refused_method(&method) {
        return refused;
    }
    let Some((repository, name)) = split(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND);
    };
    let what = format!("{repository}/{name}");
    let found = tokio::task::spawn_blocking(move || files.find(&repository, &name)).await;
    let answer = match found {
        Ok(Ok(found)) => send(found, &headers, method == Method::HEAD, None),
        Ok(Err(FileError::NotFound)) => plain(StatusCode::NOT_FOUND),
        Ok(Err(error)) => {
            tracing::error!(%what, %error, "a file cannot be sent");
            plain(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(error) => {
            tracing::error!(%what, %error, "a file cannot be sent");
            plain(StatusCode::INTERNAL_SERVER_ERROR)
        }
    };
    tracing::debug!(%what, status = answer.status().as_u16(), "answered");
    answer
}

/// `/repository/name`, decoded; `None` for anything else.
fn split(path: &str) -> Option<(String, String)> {
    let (repository, name) = path.strip_prefix('/')?.split_once('/')?;
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
    };
    Some((decode(repository)?, decode(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_repository_and_a_name_are_paths() {
        assert_eq!(split("/main/database"), Some(("main".to_owned(), "database".to_owned())));
        let escaped = split("/main/app_1%253a2.tar.zst");
        assert_eq!(escaped, Some(("main".to_owned(), "app_1%3a2.tar.zst".to_owned())));
        for path in ["/", "/main", "main/database", "/%ff/database"] {
            assert_eq!(split(path), None, "{path}");
        }
    }
}
