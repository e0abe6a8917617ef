//! Files in a volume with WASI 0.3: contents are streams, and so are the names in a directory.
//!
//! The path of a request is a path in the first volume. GET reads a file, or lists the root; PUT writes, POST appends, DELETE
//! removes; `/size?to=PATH&n=NUMBER` sets a file's size. An error is told by its code, with 507 when there is no room.

use wasip3::exports::http::handler::Guest;
use wasip3::filesystem::preopens;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode as FileError, OpenFlags, PathFlags};
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use wasip3::{spawn_local, wit_future, wit_stream};

struct Files;

impl Guest for Files {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        match serve(request).await {
            Ok(body) => Ok(answer(200, body)),
            Err(FileError::InsufficientSpace) => Ok(answer(507, b"insufficient-space\n".to_vec())),
            Err(code) => Ok(answer(500, format!("{code:?}\n").into())),
        }
    }
}

async fn serve(request: Request) -> Result<Vec<u8>, FileError> {
    let target = request.get_path_with_query().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.trim_start_matches('/').to_owned();
    let (root, _) = preopens::get_directories().into_iter().next().ok_or(FileError::NoDevice)?;
    match request.get_method() {
        Method::Get if path == "size" => {
            let value = |name: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
            };
            let (to, n) = (value("to").unwrap_or_default(), value("n").unwrap_or_default());
            let file = open(&root, to, OpenFlags::CREATE).await?;
            file.set_size(n.parse().map_err(|_| FileError::Invalid)?).await?;
            Ok(Vec::new())
        }
        Method::Get if path.is_empty() => {
            let (names, ended) = root.read_directory();
            let mut listed: Vec<String> = names.collect().await.into_iter().map(|e| e.name + "\n").collect();
            ended.await?;
            listed.sort();
            Ok(listed.concat().into())
        }
        Method::Get => {
            let flags = DescriptorFlags::READ;
            let file = root
                .open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::empty(), flags)
                .await?;
            let (bytes, ended) = file.read_via_stream(0);
            let bytes = bytes.collect().await;
            ended.await?;
            Ok(bytes)
        }
        Method::Put => {
            let file = open(&root, path, OpenFlags::CREATE | OpenFlags::TRUNCATE).await?;
            let (_, outcome) = wit_future::new(|| Ok(()));
            let (body, _trailers) = Request::consume_body(request, outcome);
            file.write_via_stream(body, 0).await?;
            Ok(Vec::new())
        }
        Method::Post => {
            let file = open(&root, path, OpenFlags::CREATE).await?;
            let (_, outcome) = wit_future::new(|| Ok(()));
            let (body, _trailers) = Request::consume_body(request, outcome);
            file.append_via_stream(body).await?;
            Ok(Vec::new())
        }
        Method::Delete => {
            root.unlink_file_at(path).await?;
            Ok(Vec::new())
        }
        _ => Err(FileError::Unsupported),
    }
}

async fn open(root: &Descriptor, path: String, how: OpenFlags) -> Result<Descriptor, FileError> {
    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
    root.open_at(PathFlags::SYMLINK_FOLLOW, path, how, flags).await
}

fn answer(status: u16, body: Vec<u8>) -> Response {
    let headers = Fields::new();
    let _ = headers.append("content-length", body.len().to_string().as_bytes());
    let (mut writer, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(reader), trailers);
    let _ = response.set_status_code(status);
    spawn_local(async move {
        writer.write_all(body).await;
    });
    response
}

wasip3::http::service::export!(Files);
