//! The inspection itself: first bytes, structure under limits, validation, kind.
//!
//! Two passes. The first reads section headers and the declarations of components, counts them, and finds the kind; it
//! also refuses what would overflow the stack or the memory of the parsing library. The second validates everything,
//! function bodies under a budget of work.

use wasmparser::{
    BinaryReader, BlockType, ComponentAlias, ComponentExternName, ComponentExternalKind, ComponentImport,
    ComponentInstance, ComponentType, ComponentTypeRef, ComponentTypeSectionReader, CoreType, Encoding, ExternalKind,
    FuncValidatorAllocations, Imports, Instance, Operator, OperatorsReader, OperatorsReaderAllocations, Parser,
    Payload, ValidPayload, Validator, WasmFeatures,
};

use super::{ArtifactError, Kind, printable};

/// Largest artifact, in bytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// Components in components and types in types. Toolchains make two or three.
const MAX_NESTING: u64 = 16;
/// Core modules, over all nesting. A Python component with native libraries has some dozens.
const MAX_MODULES: u64 = 200;
/// Components inside, over all nesting.
const MAX_COMPONENTS: u64 = 200;
/// Instances, core and component, over all nesting. Composed components have under a hundred.
const MAX_INSTANCES: u64 = 500;
/// Imports of one module or component; a shared-library style module has a few thousand.
const MAX_IMPORTS: u64 = 10_000;
/// Exports of one module or component.
const MAX_EXPORTS: u64 = 10_000;
/// Functions over all modules.
const MAX_FUNCTIONS: u64 = 250_000;
/// Types, aliases, lifts and lowers, arguments of instances, declarations in types: each, over all nesting.
const MAX_DECLARATIONS: u64 = 100_000;
/// Bytes of all sections that are not code, data or custom. The parsing library makes up to some thirty bytes of each.
const MAX_DECLARATION_BYTES: u64 = 8 << 20;
/// Instantiations of components times bytes of component types: each may compare every type. A hundred of the whole WASI
/// make a tenth of it.
const MAX_COMPARED: u64 = 128 << 20;
/// Steps of validation: one for a plain instruction, the widest signature of the module for a call, the widest results
/// for a jump or block (a jump table: for each of its targets). An 18 MB interpreter needs under 100 million; this many
/// take some seconds.
const MAX_WORK: u64 = 512 << 20;
/// Bytes of one import or export name that are kept.
const NAME_BYTES: usize = 512;
/// Exports that an error lists, and the bytes of each.
const LISTED: usize = 16;
const LISTED_BYTES: usize = 128;

const EXPECTED: &[&str] = &[
    "wasi:http/incoming-handler@0.2.x",
    "wasi:http/handler@0.3.x",
    "wasi:cli/run@0.2.x",
    "wasi:cli/run@0.3.x",
    "a core module's `_start` with imports from `wasi_snapshot_preview1` only",
];

/// Proposals that are on for guests of this kind; the engines' configuration says the same.
///
/// Off: garbage collection and with it `externref`, typed function references, exceptions, threads, 64-bit and several memories, stack switching,
/// and component async for anything but WASI 0.3.
pub fn features(kind: Kind) -> WasmFeatures {
    let base = WasmFeatures::WASM2.difference(WasmFeatures::GC_TYPES)
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::RELAXED_SIMD
        | WasmFeatures::COMPONENT_MODEL;
    match kind {
        Kind::Http03 | Kind::Command03 => base | WasmFeatures::CM_ASYNC,
        Kind::Http02 | Kind::Command02 | Kind::CommandCore => base,
    }
}

/// What the inspection found.
pub(super) struct Found {
    pub kind: Kind,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// Inspects and validates.
pub(super) fn inspect(bytes: &[u8]) -> Result<Found, ArtifactError> {
    let size = bytes.len() as u64;
    if size > MAX_BYTES {
        return Err(ArtifactError::TooLarge {
            found: size,
            limit: MAX_BYTES,
        });
    }
    check_magic(bytes)?;
    let mut outline = Outline::default();
    outline.scan(bytes)?;
    let kind = outline.kind()?;
    validate(bytes, features(kind))?;
    outline.imports.sort();
    outline.imports.dedup();
    outline.exports.sort();
    Ok(Found {
        kind,
        imports: outline.imports,
        exports: outline.exports,
    })
}

fn malformed(error: impl std::fmt::Display) -> ArtifactError {
    ArtifactError::Malformed(printable(&error.to_string(), 512))
}

fn check_magic(bytes: &[u8]) -> Result<(), ArtifactError> {
    if bytes.starts_with(b"\0asm") {
        return Ok(());
    }
    let text = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e);
    let looks_like = match bytes {
        [] => "an empty file",
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [b'B', b'Z', b'h', ..] => "bzip2",
        [b'P', b'K', 3 | 5, ..] => "zip",
        // What the compiler makes is an ELF file, too: compiled code is never taken from outside.
        [0x7f, b'E', b'L', b'F', ..] => "ELF",
        [b'M', b'Z', ..] => "a Windows program",
        [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] => "a macOS program",
        [b'#', b'!', ..] => "a script",
        [b'%', b'P', b'D', b'F', ..] => "PDF",
        _ if bytes.len() > 262 && &bytes[257..262] == b"ustar" => "tar",
        _ if bytes.len() < 4 && b"\0asm".starts_with(bytes) => "a wasm file cut short",
        _ if bytes.iter().take(512).all(text) => match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
            Some(b'(' | b';') => "WebAssembly text; assemble it first",
            Some(_) => "text",
            None => "blank text",
        },
        _ => "something else",
    };
    Err(ArtifactError::NotWasm { looks_like })
}

/// Counts one sort of thing against its limit.
#[derive(Default)]
struct Count(u64);

impl Count {
    fn add(&mut self, n: u64, what: &'static str, limit: u64) -> Result<(), ArtifactError> {
        self.0 = self.0.saturating_add(n);
        if self.0 > limit {
            Err(ArtifactError::TooMany {
                what,
                found: self.0,
                limit,
            })
        } else {
            Ok(())
        }
    }
}

/// One open module or component.
struct Level {
    encoding: Encoding,
    imports: Count,
    exports: Count,
}

/// What the first pass learns.
#[derive(Default)]
struct Outline {
    modules: Count,
    components: Count,
    instances: Count,
    functions: Count,
    types: Count,
    type_declarations: Count,
    aliases: Count,
    canonicals: Count,
    arguments: Count,
    declaration_bytes: Count,
    component_type_bytes: u64,
    instantiations: u64,
    /// Of the outermost module or component.
    encoding: Option<Encoding>,
    imports: Vec<String>,
    exports: Vec<String>,
    /// Kinds that an export makes it, in no order.
    kinds: Vec<Kind>,
    has_start: bool,
    foreign_import: bool,
}

impl Outline {
    fn scan(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        let mut levels: Vec<Level> = Vec::new();
        let mut parser = Parser::new(0);
        parser.set_features(features(Kind::Http03));
        for payload in parser.parse_all(bytes) {
            let payload = payload.map_err(malformed)?;
            self.weigh(&payload)?;
            match payload {
                Payload::Version { encoding, .. } => {
                    self.encoding.get_or_insert(encoding);
                    levels.push(Level {
                        encoding,
                        imports: Count::default(),
                        exports: Count::default(),
                    });
                    let depth = levels.len() as u64;
                    if depth > MAX_NESTING {
                        return Err(ArtifactError::TooMany {
                            what: "levels of nesting",
                            found: depth,
                            limit: MAX_NESTING,
                        });
                    }
                    match encoding {
                        Encoding::Module => self.modules.add(1, "modules", MAX_MODULES)?,
                        Encoding::Component => self.components.add(1, "components", MAX_COMPONENTS)?,
                    }
                }
                Payload::End(_) => {
                    levels.pop();
                }
                other => {
                    let outermost = levels.len() == 1;
                    let level = levels
                        .last_mut()
                        .ok_or_else(|| malformed("a section outside of everything"))?;
                    match level.encoding {
                        Encoding::Module => self.module_section(other, level, outermost)?,
                        Encoding::Component => self.component_section(other, level, outermost, bytes)?,
                    }
                }
            }
        }
        let compared = self.instantiations.saturating_mul(self.component_type_bytes);
        Count::default().add(compared, "comparisons of types", MAX_COMPARED)
    }

    /// Everything but code, data and custom sections counts into one sum of bytes.
    fn weigh(&mut self, payload: &Payload<'_>) -> Result<(), ArtifactError> {
        let range = match payload {
            Payload::CodeSectionStart { .. }
            | Payload::CodeSectionEntry(_)
            | Payload::DataSection(_)
            | Payload::CustomSection(_)
            | Payload::ModuleSection { .. }
            | Payload::ComponentSection { .. } => return Ok(()),
            other => match other.as_section() {
                Some((_, range)) => range,
                None => return Ok(()),
            },
        };
        self.declaration_bytes
            .add(range.len() as u64, "bytes of declarations", MAX_DECLARATION_BYTES)
    }

    fn module_section(
        &mut self,
        payload: Payload<'_>,
        level: &mut Level,
        outermost: bool,
    ) -> Result<(), ArtifactError> {
        match payload {
            Payload::TypeSection(s) => self.types.add(s.count().into(), "types", MAX_DECLARATIONS)?,
            Payload::FunctionSection(s) => self.functions.add(s.count().into(), "functions", MAX_FUNCTIONS)?,
            Payload::ImportSection(s) => {
                level.imports.add(s.count().into(), "imports", MAX_IMPORTS)?;
                for import in s.into_iter().take(if outermost { usize::MAX } else { 0 }) {
                    match import.map_err(malformed)? {
                        Imports::Single(_, import) => {
                            self.foreign_import |= import.module != "wasi_snapshot_preview1";
                            let name = format!("{}/{}", printable(import.module, 128), printable(import.name, 384));
                            self.imports.push(name);
                        }
                        Imports::Compact1 { .. } | Imports::Compact2 { .. } => {
                            return Err(malformed("compact imports are switched off"));
                        }
                    }
                }
            }
            Payload::ExportSection(s) => {
                level.exports.add(s.count().into(), "exports", MAX_EXPORTS)?;
                for export in s.into_iter().take(if outermost { usize::MAX } else { 0 }) {
                    let export = export.map_err(malformed)?;
                    self.has_start |= export.name == "_start" && export.kind == ExternalKind::Func;
                    self.exports.push(printable(export.name, NAME_BYTES));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn component_section(
        &mut self,
        payload: Payload<'_>,
        level: &mut Level,
        outermost: bool,
        bytes: &[u8],
    ) -> Result<(), ArtifactError> {
        match payload {
            Payload::CoreTypeSection(s) => self.types.add(s.count().into(), "types", MAX_DECLARATIONS)?,
            Payload::ComponentTypeSection(s) => {
                self.types.add(s.count().into(), "types", MAX_DECLARATIONS)?;
                self.component_types(&s, bytes)?;
            }
            Payload::ComponentAliasSection(s) => self.aliases.add(s.count().into(), "aliases", MAX_DECLARATIONS)?,
            Payload::ComponentCanonicalSection(s) => {
                self.canonicals
                    .add(s.count().into(), "canonical functions", MAX_DECLARATIONS)?;
            }
            Payload::InstanceSection(s) => {
                self.instances.add(s.count().into(), "instances", MAX_INSTANCES)?;
                for instance in s {
                    let arguments = match instance.map_err(malformed)? {
                        Instance::Instantiate { args, .. } => args.len(),
                        Instance::FromExports(exports) => exports.len(),
                    };
                    self.arguments
                        .add(arguments as u64, "instance arguments", MAX_DECLARATIONS)?;
                }
            }
            Payload::ComponentInstanceSection(s) => {
                self.instances.add(s.count().into(), "instances", MAX_INSTANCES)?;
                for instance in s {
                    let arguments = match instance.map_err(malformed)? {
                        ComponentInstance::Instantiate { args, .. } => {
                            self.instantiations += 1;
                            args.len()
                        }
                        ComponentInstance::FromExports(exports) => exports.len(),
                    };
                    self.arguments
                        .add(arguments as u64, "instance arguments", MAX_DECLARATIONS)?;
                }
            }
            Payload::ComponentImportSection(s) => {
                level.imports.add(s.count().into(), "imports", MAX_IMPORTS)?;
                for import in s.into_iter().take(if outermost { usize::MAX } else { 0 }) {
                    self.imports
                        .push(printable(import.map_err(malformed)?.name.name, NAME_BYTES));
                }
            }
            Payload::ComponentExportSection(s) => {
                level.exports.add(s.count().into(), "exports", MAX_EXPORTS)?;
                for export in s.into_iter().take(if outermost { usize::MAX } else { 0 }) {
                    let export = export.map_err(malformed)?;
                    if export.kind == ComponentExternalKind::Instance {
                        self.kinds.extend(kind_of(export.name.name));
                    }
                    self.exports.push(printable(export.name.name, NAME_BYTES));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Walks the types of a component with a stack of our own: the library's reader calls itself for each level, and
    /// three bytes make a level.
    fn component_types(&mut self, section: &ComponentTypeSectionReader<'_>, file: &[u8]) -> Result<(), ArtifactError> {
        let range = section.range();
        self.component_type_bytes += range.len() as u64;
        let bytes = file.get(range.clone()).unwrap_or_default();
        let mut reader = BinaryReader::new_features(bytes, range.start, features(Kind::Http03));
        for _ in 0..reader.read_var_u32().map_err(malformed)? {
            let mut open: Vec<(u32, bool)> = Vec::new();
            self.component_type(&mut reader, &mut open)?;
            while let Some((left, is_component)) = open.last_mut() {
                if *left == 0 {
                    open.pop();
                    continue;
                }
                *left -= 1;
                let is_component = *is_component;
                self.type_declarations
                    .add(1, "declarations in types", MAX_DECLARATIONS)?;
                match reader.read_u8().map_err(malformed)? {
                    0x00 => {
                        reader.read::<CoreType<'_>>().map_err(malformed)?;
                    }
                    0x01 => self.component_type(&mut reader, &mut open)?,
                    0x02 => {
                        reader.read::<ComponentAlias<'_>>().map_err(malformed)?;
                    }
                    0x03 if is_component => {
                        reader.read::<ComponentImport<'_>>().map_err(malformed)?;
                    }
                    0x04 => {
                        reader.read::<ComponentExternName<'_>>().map_err(malformed)?;
                        reader.read::<ComponentTypeRef>().map_err(malformed)?;
                    }
                    _ => return Err(malformed("unknown declaration in a type")),
                }
            }
        }
        Ok(())
    }

    fn component_type(
        &mut self,
        reader: &mut BinaryReader<'_>,
        open: &mut Vec<(u32, bool)>,
    ) -> Result<(), ArtifactError> {
        let mut ahead = reader.clone();
        match ahead.read_u8().map_err(malformed)? {
            tag @ (0x41 | 0x42) => {
                let count = ahead.read_var_u32().map_err(malformed)?;
                *reader = ahead;
                open.push((count, tag == 0x41));
                let depth = open.len() as u64;
                if depth > MAX_NESTING {
                    return Err(ArtifactError::TooMany {
                        what: "levels of nested types",
                        found: depth,
                        limit: MAX_NESTING,
                    });
                }
            }
            _ => {
                reader.read::<ComponentType<'_>>().map_err(malformed)?;
            }
        }
        Ok(())
    }

    fn kind(&self) -> Result<Kind, ArtifactError> {
        let found = match self.encoding {
            Some(Encoding::Component) => [Kind::Http03, Kind::Http02, Kind::Command03, Kind::Command02]
                .into_iter()
                .find(|kind| self.kinds.contains(kind)),
            Some(Encoding::Module) if self.has_start && !self.foreign_import => Some(Kind::CommandCore),
            _ => None,
        };
        found.ok_or_else(|| {
            let mut exports: Vec<String> = self
                .exports
                .iter()
                .take(LISTED)
                .map(|e| printable(e, LISTED_BYTES))
                .collect();
            exports.sort();
            if let Some(more) = self.exports.len().checked_sub(LISTED).filter(|more| *more > 0) {
                exports.push(format!("and {more} more"));
            }
            ArtifactError::Unsupported {
                exports,
                expected: EXPECTED,
            }
        })
    }
}

/// Which kind an exported instance of this name makes a component.
fn kind_of(name: &str) -> Option<Kind> {
    let (interface, version) = name.split_once('@')?;
    let track = |minor: &str| {
        version
            .strip_prefix(minor)
            .is_some_and(|patch| !patch.is_empty() && patch.len() < 10 && patch.bytes().all(|b| b.is_ascii_digit()))
    };
    match interface {
        "wasi:http/incoming-handler" if track("0.2.") => Some(Kind::Http02),
        "wasi:http/handler" if track("0.3.") => Some(Kind::Http03),
        "wasi:cli/run" if track("0.2.") => Some(Kind::Command02),
        "wasi:cli/run" if track("0.3.") => Some(Kind::Command03),
        _ => None,
    }
}

/// The second pass: everything that the specification asks, function bodies included.
fn validate(bytes: &[u8], features: WasmFeatures) -> Result<(), ArtifactError> {
    let mut validator = Validator::new_with_features(features);
    let mut parser = Parser::new(0);
    parser.set_features(features);
    let mut allocations = FuncValidatorAllocations::default();
    let mut frames = OperatorsReaderAllocations::default();
    let mut work = Count::default();
    let mut widest = Widest::default();
    for payload in parser.parse_all(bytes) {
        let payload = payload.map_err(malformed)?;
        match &payload {
            Payload::Version { .. } => widest = Widest::default(),
            Payload::TypeSection(section) => widest = widest_signature(section.clone())?,
            _ => {}
        }
        if let ValidPayload::Func(function, body) = validator.payload(&payload).map_err(malformed)? {
            widest.blocks = false;
            let mut function = function.into_validator(allocations);
            let mut reader = body.get_binary_reader();
            function.read_locals(&mut reader).map_err(malformed)?;
            let mut operators = OperatorsReader::new_with_allocs(reader, frames);
            while !operators.eof() {
                let offset = operators.original_position();
                let operator = operators.read().map_err(malformed)?;
                work.add(steps(&operator, &mut widest), "steps of validation", MAX_WORK)?;
                function.op(offset, &operator).map_err(malformed)?;
            }
            operators.finish().map_err(malformed)?;
            frames = operators.into_allocations();
            allocations = function.into_allocations();
        }
    }
    Ok(())
}

/// The widest signatures of a module.
#[derive(Clone, Copy, Default)]
struct Widest {
    results: u64,
    parameters_and_results: u64,
    /// The function being read has a block with a signature of its own, which jumps then may carry. Compilers for
    /// usual languages make none.
    blocks: bool,
}

fn widest_signature(section: wasmparser::TypeSectionReader<'_>) -> Result<Widest, ArtifactError> {
    let mut widest = Widest::default();
    for ty in section.into_iter_err_on_gc_types() {
        let ty = ty.map_err(malformed)?;
        let (parameters, results) = (ty.params().len() as u64, ty.results().len() as u64);
        widest.results = widest.results.max(results);
        widest.parameters_and_results = widest.parameters_and_results.max(parameters + results);
    }
    Ok(widest)
}

/// What validating one instruction costs at most, in pops and pushes.
fn steps(operator: &Operator<'_>, widest: &mut Widest) -> u64 {
    use Operator as Op;
    if let Op::Block { blockty } | Op::Loop { blockty } | Op::If { blockty } = operator {
        widest.blocks |= matches!(blockty, BlockType::FuncType(_));
    }
    let jump = || {
        if widest.blocks {
            widest.parameters_and_results
        } else {
            widest.results
        }
    };
    match operator {
        Op::BrTable { targets } => (u64::from(targets.len()) + 1).saturating_mul(1 + jump()),
        Op::Block { .. }
        | Op::Loop { .. }
        | Op::If { .. }
        | Op::Else
        | Op::End
        | Op::Br { .. }
        | Op::BrIf { .. }
        | Op::Return => 1 + jump(),
        Op::Call { .. } | Op::CallIndirect { .. } | Op::ReturnCall { .. } | Op::ReturnCallIndirect { .. } => {
            1 + widest.parameters_and_results
        }
        _ => 1,
    }
}
