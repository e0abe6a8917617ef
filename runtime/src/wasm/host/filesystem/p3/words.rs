//! The words of 0.2 and 0.3 for the same things.

use std::time::Duration;

use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p3::bindings::clocks::system_clock::Instant;
use wasmtime_wasi::p3::bindings::filesystem::types as p3;

/// The same flags by name, from one track's type to the other's.
macro_rules! flags {
    ($from:expr, $old:ty => $new:ty, $($flag:ident)*) => {{
        let mut flags = <$new>::empty();
        $(if $from.contains(<$old>::$flag) { flags |= <$new>::$flag; })*
        flags
    }};
}

pub fn path_flags(flags: p3::PathFlags) -> p2::PathFlags {
    flags!(flags, p3::PathFlags => p2::PathFlags, SYMLINK_FOLLOW)
}

pub fn open_flags(flags: p3::OpenFlags) -> p2::OpenFlags {
    flags!(flags, p3::OpenFlags => p2::OpenFlags, CREATE DIRECTORY EXCLUSIVE TRUNCATE)
}

pub fn descriptor_flags(flags: p3::DescriptorFlags) -> p2::DescriptorFlags {
    flags!(flags, p3::DescriptorFlags => p2::DescriptorFlags,
        READ WRITE FILE_INTEGRITY_SYNC DATA_INTEGRITY_SYNC REQUESTED_WRITE_SYNC MUTATE_DIRECTORY)
}

pub fn descriptor_flags_from(flags: p2::DescriptorFlags) -> p3::DescriptorFlags {
    flags!(flags, p2::DescriptorFlags => p3::DescriptorFlags,
        READ WRITE FILE_INTEGRITY_SYNC DATA_INTEGRITY_SYNC REQUESTED_WRITE_SYNC MUTATE_DIRECTORY)
}

pub const fn advice(advice: p3::Advice) -> p2::Advice {
    match advice {
        p3::Advice::Normal => p2::Advice::Normal,
        p3::Advice::Sequential => p2::Advice::Sequential,
        p3::Advice::Random => p2::Advice::Random,
        p3::Advice::WillNeed => p2::Advice::WillNeed,
        p3::Advice::DontNeed => p2::Advice::DontNeed,
        p3::Advice::NoReuse => p2::Advice::NoReuse,
    }
}

pub const fn descriptor_type(kind: p2::DescriptorType) -> p3::DescriptorType {
    match kind {
        p2::DescriptorType::Unknown => p3::DescriptorType::Other(None),
        p2::DescriptorType::BlockDevice => p3::DescriptorType::BlockDevice,
        p2::DescriptorType::CharacterDevice => p3::DescriptorType::CharacterDevice,
        p2::DescriptorType::Directory => p3::DescriptorType::Directory,
        p2::DescriptorType::Fifo => p3::DescriptorType::Fifo,
        p2::DescriptorType::SymbolicLink => p3::DescriptorType::SymbolicLink,
        p2::DescriptorType::RegularFile => p3::DescriptorType::RegularFile,
        p2::DescriptorType::Socket => p3::DescriptorType::Socket,
    }
}

pub fn stat(stat: p2::DescriptorStat) -> p3::DescriptorStat {
    let instant = |time: Option<Datetime>| {
        time.and_then(|time| {
            Some(Instant {
                seconds: i64::try_from(time.seconds).ok()?,
                nanoseconds: time.nanoseconds,
            })
        })
    };
    p3::DescriptorStat {
        type_: descriptor_type(stat.type_),
        link_count: stat.link_count,
        size: stat.size,
        data_access_timestamp: instant(stat.data_access_timestamp),
        data_modification_timestamp: instant(stat.data_modification_timestamp),
        status_change_timestamp: instant(stat.status_change_timestamp),
    }
}

pub const fn metadata_hash(hash: &p2::MetadataHashValue) -> p3::MetadataHashValue {
    p3::MetadataHashValue {
        lower: hash.lower,
        upper: hash.upper,
    }
}

/// `wall` is now. A time before 1970 is one that 0.2 cannot say.
pub fn new_timestamp(time: p3::NewTimestamp, wall: Duration) -> Result<p2::NewTimestamp, p3::ErrorCode> {
    let (seconds, nanoseconds) = match time {
        p3::NewTimestamp::NoChange => return Ok(p2::NewTimestamp::NoChange),
        p3::NewTimestamp::Now => (wall.as_secs(), wall.subsec_nanos()),
        p3::NewTimestamp::Timestamp(time) => {
            let seconds = u64::try_from(time.seconds).map_err(|_| p3::ErrorCode::Overflow)?;
            (seconds, time.nanoseconds)
        }
    };
    Ok(p2::NewTimestamp::Timestamp(Datetime { seconds, nanoseconds }))
}

pub const fn error_code(code: p2::ErrorCode) -> p3::ErrorCode {
    match code {
        p2::ErrorCode::Access => p3::ErrorCode::Access,
        p2::ErrorCode::Already => p3::ErrorCode::Already,
        p2::ErrorCode::BadDescriptor => p3::ErrorCode::BadDescriptor,
        p2::ErrorCode::Busy => p3::ErrorCode::Busy,
        p2::ErrorCode::CrossDevice => p3::ErrorCode::CrossDevice,
        p2::ErrorCode::Deadlock => p3::ErrorCode::Deadlock,
        p2::ErrorCode::Exist => p3::ErrorCode::Exist,
        p2::ErrorCode::FileTooLarge => p3::ErrorCode::FileTooLarge,
        p2::ErrorCode::IllegalByteSequence => p3::ErrorCode::IllegalByteSequence,
        p2::ErrorCode::InProgress => p3::ErrorCode::InProgress,
        p2::ErrorCode::InsufficientMemory => p3::ErrorCode::InsufficientMemory,
        p2::ErrorCode::InsufficientSpace => p3::ErrorCode::InsufficientSpace,
        p2::ErrorCode::Interrupted => p3::ErrorCode::Interrupted,
        p2::ErrorCode::Invalid => p3::ErrorCode::Invalid,
        p2::ErrorCode::InvalidSeek => p3::ErrorCode::InvalidSeek,
        p2::ErrorCode::Io => p3::ErrorCode::Io,
        p2::ErrorCode::IsDirectory => p3::ErrorCode::IsDirectory,
        p2::ErrorCode::Loop => p3::ErrorCode::Loop,
        p2::ErrorCode::MessageSize => p3::ErrorCode::MessageSize,
        p2::ErrorCode::NameTooLong => p3::ErrorCode::NameTooLong,
        p2::ErrorCode::NoDevice => p3::ErrorCode::NoDevice,
        p2::ErrorCode::NoEntry => p3::ErrorCode::NoEntry,
        p2::ErrorCode::NoLock => p3::ErrorCode::NoLock,
        p2::ErrorCode::NoSuchDevice => p3::ErrorCode::NoSuchDevice,
        p2::ErrorCode::NoTty => p3::ErrorCode::NoTty,
        p2::ErrorCode::NotDirectory => p3::ErrorCode::NotDirectory,
        p2::ErrorCode::NotEmpty => p3::ErrorCode::NotEmpty,
        p2::ErrorCode::NotPermitted => p3::ErrorCode::NotPermitted,
        p2::ErrorCode::NotRecoverable => p3::ErrorCode::NotRecoverable,
        p2::ErrorCode::Overflow => p3::ErrorCode::Overflow,
        p2::ErrorCode::Pipe => p3::ErrorCode::Pipe,
        p2::ErrorCode::Quota => p3::ErrorCode::Quota,
        p2::ErrorCode::ReadOnly => p3::ErrorCode::ReadOnly,
        p2::ErrorCode::TextFileBusy => p3::ErrorCode::TextFileBusy,
        p2::ErrorCode::TooManyLinks => p3::ErrorCode::TooManyLinks,
        p2::ErrorCode::Unsupported => p3::ErrorCode::Unsupported,
        // 0.3 has no word for it: its calls wait.
        p2::ErrorCode::WouldBlock => p3::ErrorCode::Other(None),
    }
}
