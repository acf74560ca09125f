//! stand-in
use crate::domain::catalog::Sources;
use std::path::PathBuf;
pub fn embedded() -> Sources { Sources::new() }
pub fn read(dirs: &[PathBuf]) -> std::io::Result<Sources> {
    let mut all = Sources::new();
    for dir in dirs { for top in ["catalog","plans"] { walk(dir, &dir.join(top), &mut all)?; } }
    Ok(all)
}
fn walk(root: &std::path::Path, at: &std::path::Path, into: &mut Sources) -> std::io::Result<()> {
    if !at.is_dir() { return Ok(()); }
    for e in std::fs::read_dir(at)? { let p = e?.path(); if p.is_dir() { walk(root,&p,into)?; } else { into.insert(p.strip_prefix(root).unwrap().display().to_string(), std::fs::read_to_string(&p)?); } }
    Ok(())
}
