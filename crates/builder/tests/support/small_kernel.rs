//! A kernel that fits into a screenful: it says on the first serial port with what options it was
//! started, asks for a login, and halts.
//!
//! **Source**: the kernel's `arch/x86/boot.rst`, protocol 2.04: a loader puts the second sector of the
//! file at some segment and jumps there, in real mode.

/// What it asks.
pub const PROMPT: &str = "small login: ";

/// Its file.
pub fn small_kernel() -> Vec<u8> {
    let mut file = vec![0; 2048];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // One sector of code for real mode behind this one; 64 paragraphs for the other mode.
    put(0x1f1, &[1]);
    put(0x1f4, &64_u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    // A jump over the header, whose version is 2.04.
    put(0x200, &[0xeb, 0x3e]);
    put(0x202, b"HdrS\x04\x02");
    // Loaded high, at 1 MiB; where an initrd may end.
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x37ff_ffff_u32.to_le_bytes());
    #[rustfmt::skip]
    let code = [
        0xfc,                         // cld
        0x0e, 0x1f,                   // push cs; pop ds
        0xba, 0xf8, 0x03,             // mov dx, 0x3f8
        0x66, 0xa1, 0x28, 0x00,       // mov eax, [0x28]     the options' address, from the header
        0x89, 0xc6,                   // mov si, ax
        0x83, 0xe6, 0x0f,             // and si, 15
        0x66, 0xc1, 0xe8, 0x04,       // shr eax, 4
        0x8e, 0xd8,                   // mov ds, ax
        0xe8, 0x0b, 0x00,             // call print
        0x0e, 0x1f,                   // push cs; pop ds
        0xbe, 0x6c, 0x00,             // mov si, prompt
        0xe8, 0x03, 0x00,             // call print
        0xf4, 0xeb, 0xfd,             // hlt; again
        0xac,                         // print: lodsb
        0x84, 0xc0, 0x74, 0x03,       // test al, al; jz end
        0xee, 0xeb, 0xf8,             // out dx, al; jmp print
        0xc3,                         // end: ret
    ];
    put(0x240, &code);
    put(0x240 + code.len(), b"\r\n");
    put(0x242 + code.len(), PROMPT.as_bytes());
    assert_eq!(0x40 + code.len(), 0x6c, "where the prompt is");
    file
}
