//! A preview 1 core module -> a component, with the published adapter. It decides nothing: the module was inspected.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::{ArtifactError, printable};

/// The adapter ends every failing program with the same code; preview 1 knows 256. So `proc_exit` is led past the adapter, to
/// the host's own function of the same shape.
const EXIT_WIT: &str = "package wasi:cli@0.2.12;
interface exit { exit-with-code: func(status-code: u8); }
world exits { import exit; }
";
const PROC_EXIT: (&str, &str) = (WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, "proc_exit");
const EXIT_WITH_CODE: (&str, &str) = ("wasi:cli/exit@0.2.12", "exit-with-code");

/// Wraps an inspected `_start` module into a `wasi:cli/run` component.
///
/// The encoder is a large library that was written for trusted toolchains, hence the second net below; the usual caller
/// is the compiler child anyway.
pub(crate) fn command(module: &[u8]) -> Result<Vec<u8>, ArtifactError> {
    let (mut module, exits) = without_world(module)?;
    let encode = || {
        if exits {
            let mut resolve = Resolve::default();
            let package = resolve.push_str("exit.wit", EXIT_WIT)?;
            let world = resolve.select_world(&[package], Some("exits"))?;
            embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
        }
        ComponentEncoder::default()
            .validate(false)
            .module(&module)?
            .adapter(
                WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
                WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
            )?
            .encode()
    };
    match catch_unwind(AssertUnwindSafe(encode)) {
        Ok(Ok(component)) => Ok(component),
        Ok(Err(error)) => Err(ArtifactError::Malformed(printable(
            &format!("cannot be adapted: {error:#}"),
            512,
        ))),
        Err(_) => Err(ArtifactError::Malformed(
            "cannot be adapted: the encoder gave up".into(),
        )),
    }
}

/// The module without its `component-type` custom sections: they describe a world that the guest cannot have (it imports
/// preview 1 only), and the encoder would parse them with a recursive reader that a nested type can overflow. Its
/// `proc_exit` becomes `exit-with-code`; true if it has one.
fn without_world(module: &[u8]) -> Result<(Vec<u8>, bool), ArtifactError> {
    let malformed = |e: wasmparser::BinaryReaderError| ArtifactError::Malformed(printable(&e.to_string(), 512));
    let mut out = Vec::with_capacity(module.len());
    let mut exits = false;
    out.extend_from_slice(module.get(..8).unwrap_or_default());
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(malformed)?;
        if matches!(&payload, Payload::CustomSection(s) if s.name().starts_with("component-type")) {
            continue;
        }
        let Some((id, range)) = payload.as_section() else {
            continue;
        };
        let Some(contents) = module.get(range) else { continue };
        let rewritten = match payload {
            Payload::ImportSection(_) => exit_with_code(contents),
            _ => None,
        };
        exits |= rewritten.is_some();
        section(&mut out, id, rewritten.as_deref().unwrap_or(contents));
    }
    Ok((out, exits))
}

/// The import section with `proc_exit` under its other name; `None` if it has none. Both names are written as the format
/// has them, each after its length, so the bytes of the one stand for the other.
fn exit_with_code(contents: &[u8]) -> Option<Vec<u8>> {
    let name = |(module, field): (&str, &str)| {
        let mut bytes = Vec::new();
        for part in [module, field] {
            number(&mut bytes, part.len());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    };
    let (old, new) = (name(PROC_EXIT), name(EXIT_WITH_CODE));
    let at = contents.windows(old.len()).position(|window| window == old)?;
    let (before, after) = (&contents[..at], &contents[at + old.len()..]);
    Some([before, &new, after].concat())
}

fn section(out: &mut Vec<u8>, id: u8, contents: &[u8]) {
    out.push(id);
    number(out, contents.len());
    out.extend_from_slice(contents);
}

/// An unsigned LEB128 number.
fn number(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(u8::try_from(n & 0x7f).unwrap_or_default() | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).unwrap_or_default());
}
