// Package image reads executable files as a section object needs them (Windows Internals 7 ch. 5, "Image sections"): which
// bytes of a PE or ELF file lie where in memory under which protection, what its header asks of the process, and what has to
// be fixed where it is not at its preferred base. It maps nothing and keeps no bytes of the file.
//
// A file is whatever somebody wrote, so nothing of it is believed: Open refuses, with the status that Windows would give,
// what it cannot lay out. An Image takes no more memory than the file's own headers and relocations account for, however
// large a memory they describe.
//
// ELF has no SEC_IMAGE on Windows. An ELF file is laid out as its program headers say, in the terms of a PE image:
//
//	PT_LOAD             a subsection: p_flags are its protection, p_memsz beyond p_filesz its zeros
//	lowest PT_LOAD      the preferred base, down to 64 KiB; a shared object has none and is always relocated
//	R_*_RELATIVE, RELR  base relocations; those that name a symbol are a dynamic linker's business and left alone
//	PT_GNU_STACK        without PF_X it is NX_COMPAT
package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// PageSize is the size of a page.
const PageSize = 4096

// granularity is what a base address is a multiple of.
const granularity = 0x10000

// Format is the kind of file.
type Format uint8

// The formats.
const (
	PE Format = iota + 1
	ELF
)

func (f Format) String() string {
	if f == ELF {
		return "ELF"
	}
	return "PE"
}

// Machine is what the code is for, by the values of IMAGE_FILE_HEADER.Machine.
type Machine uint16

// The machines whose images can be mapped.
const (
	I386  Machine = 0x014c
	AMD64 Machine = 0x8664
	ARM64 Machine = 0xaa64
)

func (m Machine) String() string {
	switch m {
	case I386:
		return "x86"
	case AMD64:
		return "x64"
	case ARM64:
		return "arm64"
	}
	return fmt.Sprintf("machine 0x%04x", uint16(m))
}

// Access is what a subsection may be used for.
type Access uint8

// The bits of Access.
const (
	Read Access = 1 << iota
	Write
	Execute
	// Shared writes are seen by all who map the image; without it each has a copy of what it writes.
	Shared
)

// Protection is the PAGE_ constant that pages of a subsection have at first.
func (a Access) Protection() uint32 {
	const noAccess, readOnly, readWrite, writeCopy = 0x01, 0x02, 0x04, 0x08
	p := uint32(noAccess)
	switch {
	case a&Write != 0 && a&Shared != 0:
		p = readWrite
	case a&Write != 0:
		p = writeCopy
	case a&Read != 0:
		p = readOnly
	}
	if a&Execute != 0 {
		p <<= 4 // PAGE_EXECUTE, _READ, _READWRITE, _WRITECOPY
	}
	return p
}

// Subsection is consecutive pages that come from one place of the file and have one protection.
type Subsection struct {
	Name   string
	RVA    uint64 // of the first page
	Size   uint64 // in memory, whole pages
	Offset int64  // of the first byte in the file
	Raw    uint64 // bytes that the file has; the rest are zeros
	Access Access
}

// Protection is the PAGE_ constant that the pages have at first.
func (s Subsection) Protection() uint32 { return s.Access.Protection() }

// Image is the layout of an executable file.
type Image struct {
	Format  Format
	Machine Machine
	Bits    int    // 32 or 64
	Base    uint64 // that it was linked for; 0 = none
	Size    uint64 // of the whole image in memory, whole pages
	Entry   uint64 // RVA of the first instruction; 0 = none
	Headers uint64 // bytes of the file that are headers

	Subsystem    uint16
	StackReserve uint64 // of the first thread; 0 = the system's default
	StackCommit  uint64
	HeapReserve  uint64 // of its default heap; 0 = the system's default
	HeapCommit   uint64

	DLL               bool // a library: no process starts with it
	NXCompat          bool // IMAGE_DLLCHARACTERISTICS_NX_COMPAT
	DynamicBase       bool // IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE
	HighEntropy       bool // IMAGE_DLLCHARACTERISTICS_HIGH_ENTROPY_VA
	LargeAddressAware bool // IMAGE_FILE_LARGE_ADDRESS_AWARE
	Code              bool // there is some
	Flat              bool // sections smaller than pages: mapped as it lies in the file

	// Subsections ascend by RVA and do not overlap. Pages between them are committed and cannot be touched.
	Subsections []Subsection

	size int64 // of the file
	// What has to be fixed; nil if nothing can be: the image was linked without relocations.
	fixups fixups
	// Why nothing can be fixed, where the file's relocations are malformed.
	fixupErr error
}

// Open lays out the executable file of size bytes behind r. A file that cannot be one is refused with a Refusal; anything else
// is an error of r's.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	if size <= 0 {
		return nil, refuse(StatusInvalidFileForSection, "the file is empty")
	}
	f := &file{r: r, size: size}
	magic, err := f.upTo(0, 4)
	if err != nil {
		return nil, err
	}
	if string(magic) == "\x7fELF" {
		return openELF(f)
	}
	return openPE(f)
}

// Dynamic says whether the system chooses a base for the image, the same for all who map it, whatever it was linked for.
func (im *Image) Dynamic() bool {
	return im.DynamicBase && im.Code && !im.Flat && im.fixups != nil && im.fixupErr == nil
}

// Relocatable says whether the image works at another base than the one it was linked for: an image without relocations can be
// mapped elsewhere, but whatever absolute addresses it has are wrong there. The error is a Refusal, if its relocations are
// malformed.
func (im *Image) Relocatable() (bool, error) { return im.fixups != nil, im.fixupErr }

// DLLCharacteristics are the flags of IMAGE_OPTIONAL_HEADER.DllCharacteristics that are about memory.
func (im *Image) DLLCharacteristics() (flags uint16) {
	for _, f := range []struct {
		has  bool
		flag uint16
	}{{im.HighEntropy, dllHighEntropy}, {im.DynamicBase, dllDynamicBase}, {im.NXCompat, dllNXCompat}} {
		if f.has {
			flags |= f.flag
		}
	}
	return flags
}

// At finds the subsection of an RVA. ok is false for what lies between them.
func (im *Image) At(rva uint64) (s Subsection, ok bool) {
	lo, hi := 0, len(im.Subsections)
	for lo < hi {
		mid := (lo + hi) / 2
		if s := im.Subsections[mid]; rva < s.RVA {
			hi = mid
		} else if rva-s.RVA >= s.Size {
			lo = mid + 1
		} else {
			return s, true
		}
	}
	return Subsection{}, false
}

// FilePage says which page of the file page number page of the image is, byte for byte, if it is at its preferred base: such a
// page can be shared with everybody else who has the file's. ok is false if there is no such page, because the file does not
// hold it at a page's offset, or not all of it.
func (im *Image) FilePage(page uint64) (filePage uint64, ok bool) {
	rva := page * PageSize
	s, ok := im.At(rva)
	if !ok || s.Offset%PageSize != 0 {
		return 0, false
	}
	at := rva - s.RVA
	if at >= s.Raw {
		return 0, false
	}
	off := uint64(s.Offset) + at
	if s.Raw-at < PageSize && off+(s.Raw-at) < uint64(im.size) {
		return 0, false // the file goes on with something else
	}
	return off / PageSize, true
}

// Zero says whether a page is nothing but zeros, at any base: the file has no bytes for it.
func (im *Image) Zero(page uint64) bool {
	rva := page * PageSize
	s, ok := im.At(rva)
	return !ok || rva-s.RVA >= s.Raw
}

// ReadAt reads bytes of the image as they are in memory when it is mapped at Base+delta, before anybody wrote to it. r is
// the file.
func (im *Image) ReadAt(r io.ReaderAt, b []byte, rva, delta uint64) error {
	if delta == 0 || im.fixups == nil || len(b) == 0 {
		return im.read(r, b, rva)
	}
	if im.fixupErr != nil {
		return im.fixupErr
	}
	// A word that is to be fixed may begin before what is asked for, or end behind it.
	lo := rva - min(rva, wordSize-1)
	buf := make([]byte, (rva-lo)+uint64(len(b))+wordSize-1)
	if err := im.read(r, buf, lo); err != nil {
		return err
	}
	for f, err := range im.fixups.between(im, r, lo, rva+uint64(len(b))) {
		if err != nil {
			return err
		}
		f.apply(buf[f.RVA-lo:], delta)
	}
	copy(b, buf[rva-lo:])
	return nil
}

// read reads bytes of the image as it was linked; zeros are what no subsection has.
func (im *Image) read(r io.ReaderAt, b []byte, rva uint64) error {
	clear(b)
	end := rva + uint64(len(b))
	for _, s := range im.Subsections {
		lo, hi := max(rva, s.RVA), min(end, s.RVA+s.Raw)
		if lo >= hi {
			continue
		}
		part := b[lo-rva : hi-rva]
		n, err := r.ReadAt(part, s.Offset+int64(lo-s.RVA))
		if n < len(part) && !errors.Is(err, io.EOF) {
			return err
		}
		clear(part[n:]) // the file was shortened meanwhile
	}
	return nil
}

// --- the file ------------------------------------------------------------------------------------------------------------

// file reads the parts of a file that are looked at, within its size.
type file struct {
	r    io.ReaderAt
	size int64
}

// upTo reads n bytes at off, or as many as there are.
func (f *file) upTo(off int64, n int) ([]byte, error) {
	if off < 0 || off >= f.size {
		return nil, nil
	}
	b := make([]byte, min(int64(n), f.size-off))
	got, err := f.r.ReadAt(b, off)
	if got < len(b) && err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:got], nil
}

var le = binary.LittleEndian

func pageCeil(n uint64) uint64 { return (n + PageSize - 1) &^ (PageSize - 1) }
