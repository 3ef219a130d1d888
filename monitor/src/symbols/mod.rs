//! stub
use serde::Serialize;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawFrame {
    BuildId { id: [u8; 20], offset: u64 },
    Address(u64),
}
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) module: Option<String>,
    pub(crate) build_id: Option<String>,
    pub(crate) offset: u64,
    pub(crate) symbol: Option<String>,
    pub(crate) symbol_offset: Option<u64>,
}
impl Frame {
    pub(crate) fn unresolved(raw: &RawFrame) -> Self {
        match raw {
            RawFrame::BuildId { id, offset } => Self {
                module: None,
                build_id: Some(id.iter().map(|b| format!("{b:02x}")).collect()),
                offset: *offset,
                symbol: None,
                symbol_offset: None,
            },
            RawFrame::Address(offset) => {
                Self { module: None, build_id: None, offset: *offset, symbol: None, symbol_offset: None }
            }
        }
    }
}
