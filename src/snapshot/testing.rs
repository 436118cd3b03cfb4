//! What the tests of this folder share: objects in memory, whole vaults on a simulated disk, and a small
//! working tree that writes rows the way the filesystem layer does.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::crypto::{Argon2Cost, Credential, RootSecret, SecretBytes, add_slot, new_header};
use crate::disk::{Disk, SimDisk};
use crate::env::{Env, TestEnv, Time};
use crate::format::{ChunkId, ChunkerParams, Cipher, Content, Entry, FileType, PackKind};
use crate::store::Effort;
use crate::store::config::EngineConfig;
use crate::store::engine::Engine;
use crate::store::error::{Result, StoreError};
use crate::store::header;
use crate::store::live::{Batch, LiveConfig, Table};
use crate::store::packs::ChunkSource;
use crate::store::records::{
    DirentRow, ExtentRow, InodeRow, ROOT_INO, decode_u64, dirent_key, encode_u64, extent_key, inode_key,
    rows_of, settings, xattr_key,
};

use super::chain::{Chain, open_sealed};
use super::open::{OpenOptions, Opened, Unlocked, create_vault, open_cold, open_engine, unlock};
use super::tree::TreeReader;
use super::write::ObjectSink;

/// Chunks in memory.
#[derive(Default)]
pub(crate) struct MemStore {
    pub(crate) chunks: Mutex<HashMap<ChunkId, Arc<[u8]>>>,
}

impl MemStore {
    pub(crate) fn put(&self, bytes: &[u8]) -> ChunkId {
        let id = ChunkId(*blake3::hash(bytes).as_bytes());
        self.chunks.lock().unwrap().insert(id, bytes.into());
        id
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.lock().unwrap().len()
    }
}

impl ObjectSink for MemStore {
    fn put_object(&self, plaintext: &[u8]) -> Result<ChunkId> {
        Ok(self.put(plaintext))
    }
}

impl ChunkSource for MemStore {
    fn read_chunk(&self, _: PackKind, id: &ChunkId) -> Result<Arc<[u8]>> {
        let chunk = self.chunks.lock().unwrap().get(id).cloned();
        chunk.ok_or_else(|| StoreError::NotFound(format!("chunk {id}")))
    }

    fn read_at(&self, id: &ChunkId, offset: u32, buf: &mut [u8]) -> Result<()> {
        let chunk = self.read_chunk(PackKind::Data, id)?;
        let part = chunk.get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(part.ok_or_else(|| StoreError::Corrupt("beyond a chunk".into()))?);
        Ok(())
    }
}

/// An entry with plain attributes.
pub(crate) fn entry(name: &str, kind: FileType, ino: u64, content: Content) -> Entry {
    let time = Time { secs: 1_700_000_000 + ino as i64, nanos: 5 };
    Entry {
        name: name.as_bytes().to_vec(),
        kind,
        ino,
        mode: if kind == FileType::Dir { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        atime: time,
        mtime: time,
        ctime: time,
        nlink: if kind == FileType::Dir { 2 } else { 1 },
        size: match &content {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Extents(extents) => extents.last().map_or(0, |e| e.offset + e.len),
            _ => 0,
        },
        xattrs: Vec::new(),
        content,
    }
}

/// What a tree holds, by path.
pub(crate) type Model = BTreeMap<String, Vec<u8>>;

/// Reads everything below a root: files as their bytes, directories as `/`.
pub(crate) fn read_tree(source: &dyn ChunkSource, root: &Entry) -> Result<Model> {
    let reader = TreeReader::new(source);
    let mut model = Model::new();
    for item in reader.walk(root) {
        let item = item.map_err(|e| e.source)?;
        let path = String::from_utf8(item.path).unwrap();
        let value = match item.entry.kind {
            FileType::File => {
                let mut bytes = vec![0; item.entry.size as usize];
                assert_eq!(reader.read(&item.entry.content, item.entry.size, 0, &mut bytes)?, bytes.len());
                bytes
            }
            FileType::Dir => b"/".to_vec(),
            _ => b"special".to_vec(),
        };
        model.insert(path, value);
    }
    Ok(model)
}

/// Small sizes, and nothing in the background: runs are reproducible.
pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        pack_bytes: 256 << 10,
        workers: 1,
        cache_bytes: 1 << 20,
        dirty_bytes_max: 4 << 20,
        zstd_level: 1,
        background: false,
        reserve_bytes: 0,
        live: LiveConfig {
            segment_bytes: 256 << 10,
            cache_bytes: 1 << 20,
            overlay_bytes_max: 1 << 20,
            background: false,
        },
    }
}

/// A vault on a simulated disk.
pub(crate) struct Rig {
    pub(crate) disk: SimDisk,
    pub(crate) unlocked: Arc<Unlocked>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) env: Arc<TestEnv>,
}

const SECRET: [u8; 64] = [7; 64];

impl Rig {
    pub(crate) fn new(seed: u64) -> Rig {
        let disk = SimDisk::new(seed);
        let env = Arc::new(TestEnv::new(seed));
        let root = RootSecret::generate(env.as_ref());
        let params = ChunkerParams { min: 4 << 10, avg: 16 << 10, max: 64 << 10 };
        let created = "2026-11-21T02:00:00Z".to_string();
        let mut header = new_header(env.as_ref(), &root, Cipher::ChaCha20Poly1305, params, created.clone());
        let key = Credential::Keyfile(SecretBytes::new(SECRET.to_vec()));
        add_slot(env.as_ref(), &mut header, &root, &key, Argon2Cost::TEST, "key".into(), created).unwrap();
        create_vault(&disk, header, &root).unwrap();
        let loaded = header::load(&disk).unwrap();
        let unlocked = Arc::new(unlock(loaded, &key).unwrap());
        let engine = Self::open(&disk, &env, &unlocked).unwrap().engine;
        Rig { disk, unlocked, engine, env }
    }

    /// Unlocks the vault once more, with keys that remember nothing.
    pub(crate) fn unlock_anew(&self) -> Unlocked {
        let key = Credential::Keyfile(SecretBytes::new(SECRET.to_vec()));
        unlock(header::load(&self.disk).unwrap(), &key).unwrap()
    }

    pub(crate) fn open(disk: &SimDisk, env: &Arc<TestEnv>, unlocked: &Unlocked) -> Result<Opened> {
        let opts = OpenOptions {
            cfg: config(),
            owner: (0, 0),
            path: "/vault".into(),
            highwater: None,
            accept_rollback: false,
            discard_live: false,
            holder_note: "{}".into(),
        };
        open_engine(Arc::new(disk.clone()), Arc::clone(env) as Arc<dyn Env>, unlocked, opts)
    }

    /// Opens another disk, such as what a crash left, with the same keys.
    pub(crate) fn on(&self, disk: SimDisk, seed: u64) -> Result<Rig> {
        // A machine that comes up again has other random bytes.
        let env = Arc::new(TestEnv::new(seed ^ 0x5eed));
        env.advance(std::time::Duration::from_secs(3600));
        let engine = Self::open(&disk, &env, &self.unlocked)?.engine;
        Ok(Rig { disk, unlocked: Arc::clone(&self.unlocked), engine, env })
    }

    pub(crate) fn chain(&self) -> Chain {
        Chain::load(&self.disk, &self.engine.header).unwrap()
    }

    /// Reads a snapshot from packs and chain file alone.
    pub(crate) fn read_cold(&self, seq: u64) -> Result<Model> {
        read_cold(&self.disk, &self.unlocked, seq)
    }

    pub(crate) fn tree(&self) -> MiniTree<'_> {
        MiniTree { engine: &self.engine }
    }
}

/// Reads a snapshot from packs and chain file alone, as a host without `live/` would.
pub(crate) fn read_cold(disk: &SimDisk, unlocked: &Unlocked, seq: u64) -> Result<Model> {
    let chain = Chain::load(disk, &unlocked.header)?;
    let info = chain.get(seq).ok_or_else(|| StoreError::NotFound(format!("snapshot {seq}")))?;
    let cold = open_cold(Arc::new(disk.clone()) as Arc<dyn Disk>, unlocked, &chain, &[seq], 1 << 20)?;
    let root = open_sealed(disk, &unlocked.keys, info)?.root.unwrap();
    let model = read_tree(&cold, &root.entry)?;
    let files = model.values().filter(|v| *v != b"/" && *v != b"special");
    assert_eq!(root.files, files.clone().count() as u64, "counted files of snapshot {seq}");
    assert_eq!(root.bytes, files.map(|v| v.len() as u64).sum::<u64>(), "counted bytes of snapshot {seq}");
    assert_eq!(root.dirs, model.values().filter(|v| *v == b"/").count() as u64 + 1, "the root counts");
    Ok(model)
}

/// A simulated disk as the independent checker reads it.
struct Shown<'a>(&'a SimDisk);

impl fsck_strongroom::Source for Shown<'_> {
    fn list(&self, dir: &str) -> std::io::Result<Vec<String>> {
        Ok(self.0.list(dir)?.into_iter().map(|item| item.name).collect())
    }

    fn len(&self, path: &str) -> std::io::Result<u64> {
        self.0.len(path)?.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn read(&self, path: &str, off: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.open(path, crate::disk::OpenMode::Read)?.read_at(buf, off)
    }
}

/// Lets the independent checker look at everything. Panics unless the vault is clean and all counts are
/// right.
pub(crate) fn fsck(disk: &SimDisk, what: &str) {
    let key = fsck_strongroom::Unlock::Keyfile(SECRET.to_vec());
    let report = fsck_strongroom::check_source(&Shown(disk), Some(key), &Default::default());
    let report = report.unwrap_or_else(|e| panic!("{what}: fsck: {e}"));
    assert!(report.is_clean(), "{what}: fsck: {:#?}", report.findings);
    for snapshot in &report.snapshots {
        assert_eq!(snapshot.claimed, snapshot.counted, "{what}: fsck: counts of {snapshot:?}");
    }
}

/// Writes rows of a working tree.
pub(crate) struct MiniTree<'a> {
    pub(crate) engine: &'a Engine,
}

impl MiniTree<'_> {
    fn setting(&self, key: &[u8]) -> u64 {
        let next = self.engine.live.get(Table::Settings, key).unwrap().map_or(1, |v| decode_u64(&v).unwrap());
        let mut batch = Batch::new();
        batch.put(Table::Settings, key, encode_u64(next + 1));
        self.engine.live.apply(batch).unwrap();
        next
    }

    fn mark(&self, batch: &mut Batch, dir: u64) {
        batch.put(Table::DirtyDirs, inode_key(dir), encode_u64(self.setting(settings::CHANGE_COUNTER)));
    }

    pub(crate) fn inode(&self, ino: u64) -> InodeRow {
        InodeRow::decode(&self.engine.live.get(Table::Inodes, &inode_key(ino)).unwrap().unwrap()).unwrap()
    }

    pub(crate) fn lookup(&self, path: &str) -> Option<(u64, u64)> {
        let mut at = (ROOT_INO, ROOT_INO);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let row = self.engine.live.get(Table::Dirents, &dirent_key(at.1, name.as_bytes())).unwrap()?;
            at = (at.1, DirentRow::decode(&row).unwrap().ino);
        }
        Some(at)
    }

    fn parent<'p>(&self, path: &'p str) -> (u64, &'p str) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.lookup(dir).expect("a parent").1, name)
    }

    fn add(&self, path: &str, row: InodeRow, extents: &[(u64, ExtentRow)]) -> Result<u64> {
        let (parent, name) = self.parent(path);
        let ino = self.setting(settings::NEXT_INO);
        let mut batch = Batch::new();
        let dirent = DirentRow { ino, kind: row.kind };
        batch.put(Table::Inodes, inode_key(ino), InodeRow { parent, ..row }.encode());
        batch.put(Table::Dirents, dirent_key(parent, name.as_bytes()), dirent.encode());
        for (offset, extent) in extents {
            batch.put(Table::Extents, extent_key(ino, *offset), extent.encode());
        }
        self.mark(&mut batch, parent);
        self.engine.live.apply(batch)?;
        Ok(ino)
    }

    pub(crate) fn mkdir(&self, path: &str) -> Result<u64> {
        self.add(path, InodeRow::new(FileType::Dir, 0o755, 0, 0, 0, self.engine.ctx.env.now()), &[])
    }

    /// Stores bytes as extents of `piece` bytes; small files stand in their row.
    pub(crate) fn write(&self, path: &str, bytes: &[u8], piece: usize) -> Result<u64> {
        if self.lookup(path).is_some() {
            self.remove(path)?;
        }
        let mut row = InodeRow::new(FileType::File, 0o644, 0, 0, 0, self.engine.ctx.env.now());
        row.size = bytes.len() as u64;
        let mut extents = Vec::new();
        if (1..=2048).contains(&bytes.len()) {
            extents.push((0, ExtentRow::Inline(bytes.to_vec())));
        } else {
            for (n, part) in bytes.chunks(piece).enumerate() {
                let chunk = self.engine.packs.put(PackKind::Data, part, Effort::Fast)?;
                let row = ExtentRow::Chunk { len: part.len() as u64, chunk, chunk_offset: 0 };
                extents.push(((n * piece) as u64, row));
            }
        }
        self.add(path, row, &extents)
    }

    /// Removes a file, or a directory with all that is in it.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        let (parent, ino) = self.lookup(path).expect("something to remove");
        let name = path.rsplit('/').next().unwrap();
        let live = &self.engine.live;
        let (from, to) = rows_of(ino);
        for (key, _) in live.range(Table::Dirents, &from, Some(&to), usize::MAX)? {
            self.remove(&format!("{path}/{}", std::str::from_utf8(&key[8..]).unwrap()))?;
        }
        let mut batch = Batch::new();
        for (key, _) in live.range(Table::Extents, &from, Some(&to), usize::MAX)? {
            batch.delete(Table::Extents, key);
        }
        for table in [Table::Inodes, Table::DirtyDirs, Table::Trees] {
            batch.delete(table, inode_key(ino));
        }
        batch.delete(Table::Dirents, dirent_key(parent, name.as_bytes()));
        self.mark(&mut batch, parent);
        live.apply(batch)
    }

    /// Changes attributes, which is a change of the directory above.
    pub(crate) fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        let (parent, ino) = self.lookup(path).expect("something to change");
        let mut batch = Batch::new();
        let row = InodeRow { has_xattrs: true, ..self.inode(ino) };
        batch.put(Table::Inodes, inode_key(ino), row.encode());
        batch.put(Table::Xattrs, xattr_key(ino, name.as_bytes()), value);
        self.mark(&mut batch, parent);
        self.engine.live.apply(batch)
    }

    /// Returns what the working tree holds, from its rows. Directories must have been loaded.
    pub(crate) fn model(&self) -> Result<Model> {
        let mut model = Model::new();
        let mut todo = vec![(String::new(), ROOT_INO)];
        while let Some((path, dir)) = todo.pop() {
            assert!(self.inode(dir).lazy.is_none(), "{path} is not loaded");
            let (from, to) = rows_of(dir);
            for (key, value) in self.engine.live.range(Table::Dirents, &from, Some(&to), usize::MAX)? {
                let name = std::str::from_utf8(&key[8..]).unwrap();
                let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                let dirent = DirentRow::decode(&value).unwrap();
                if dirent.kind == FileType::Dir {
                    model.insert(path.clone(), b"/".to_vec());
                    todo.push((path, dirent.ino));
                } else {
                    model.insert(path, self.read(dirent.ino)?);
                }
            }
        }
        Ok(model)
    }

    fn read(&self, ino: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.inode(ino).size as usize];
        let (from, to) = rows_of(ino);
        for (key, value) in self.engine.live.range(Table::Extents, &from, Some(&to), usize::MAX)? {
            let at = u64::from_be_bytes(key[8..].try_into().unwrap()) as usize;
            match ExtentRow::decode(&value)? {
                ExtentRow::Inline(part) => bytes[at..at + part.len()].copy_from_slice(&part),
                ExtentRow::Chunk { len, chunk, chunk_offset } => {
                    self.engine.packs.read_at(&chunk, chunk_offset, &mut bytes[at..at + len as usize])?;
                }
            }
        }
        Ok(bytes)
    }
}

/// Reproducible bytes that do not compress.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
