package image

import (
	"bytes"
	"errors"
	"math/bits"
)

// What the header of a PE file says, by the names of winnt.h.
const (
	dosHeaderSize     = 64
	peHeaderSize      = 24 // Signature and IMAGE_FILE_HEADER
	sectionHeaderSize = 40
	optionalSize32    = 96 // IMAGE_OPTIONAL_HEADER without its directories
	optionalSize64    = 112

	magic32 = 0x10b
	magic64 = 0x20b

	fileRelocsStripped    = 0x0001
	fileExecutableImage   = 0x0002
	fileLargeAddressAware = 0x0020
	fileDLL               = 0x2000

	dllHighEntropy = 0x0020
	dllDynamicBase = 0x0040
	dllNXCompat    = 0x0100

	directoryBaseReloc = 5
	directories        = 16

	sectionShared  = 0x10000000
	sectionExecute = 0x20000000
	sectionRead    = 0x40000000
	sectionWrite   = 0x80000000
)

const (
	maxImage    = 0x77000000 // MM_SIZE_OF_LARGEST_IMAGE
	maxSections = 96
	maxFile     = 1<<32 - 1
	sector      = 512 // in which Windows reads an image's raw data
)

// optionalHeader is what is used of IMAGE_OPTIONAL_HEADER32 and 64.
type optionalHeader struct {
	code, entry                                    uint32
	base                                           uint64
	sectionAlign, fileAlign, sizeImage, sizeHeader uint32
	subsystem, characteristics                     uint16
	stackReserve, stackCommit                      uint64
	heapReserve, heapCommit                        uint64
	relocRVA, relocSize                            uint32
}

func openPE(f *file) (*Image, error) {
	dos, err := f.upTo(0, dosHeaderSize)
	if err != nil {
		return nil, err
	}
	if len(dos) < dosHeaderSize || dos[0] != 'M' || dos[1] != 'Z' {
		return nil, refuse(StatusInvalidImageNotMZ, "it begins neither with MZ nor with ELF's magic")
	}
	if f.size > maxFile {
		return nil, refuse(StatusInvalidFileForSection, "a PE file has less than 4 GiB")
	}
	at := int64(le.Uint32(dos[0x3c:]))
	nt, err := f.upTo(at, peHeaderSize+optionalSize64+8*directories)
	if err != nil {
		return nil, err
	}
	if len(nt) < peHeaderSize {
		return nil, refuse(StatusInvalidImageProtect, "the file ends before its PE header, at 0x%x", at)
	}
	if err := signature(nt); err != nil {
		return nil, err
	}
	whole := make([]byte, peHeaderSize+optionalSize64+8*directories)
	copy(whole, nt) // what the file does not have reads as zeros
	nt, opt := whole[:peHeaderSize], whole[peHeaderSize:]

	im := &Image{Format: PE, Machine: Machine(le.Uint16(nt[4:])), size: f.size}
	h, err := im.optional(opt)
	if err != nil {
		return nil, err
	}
	sections, characteristics := int(le.Uint16(nt[6:])), le.Uint16(nt[22:])
	if err := checkPE(im, h, sections, characteristics); err != nil {
		return nil, err
	}
	im.Base, im.Entry = h.base, uint64(h.entry)
	im.Subsystem, im.StackReserve, im.StackCommit = h.subsystem, h.stackReserve, h.stackCommit
	im.HeapReserve, im.HeapCommit = h.heapReserve, h.heapCommit
	im.DLL = characteristics&fileDLL != 0
	im.LargeAddressAware = characteristics&fileLargeAddressAware != 0
	im.NXCompat = h.characteristics&dllNXCompat != 0
	im.DynamicBase = h.characteristics&dllDynamicBase != 0
	im.HighEntropy = h.characteristics&dllHighEntropy != 0
	im.Flat = h.sectionAlign < PageSize
	im.Code = h.code != 0 || h.entry != 0 || im.Flat

	table := at + peHeaderSize + int64(le.Uint16(nt[20:]))
	im.Headers = uint64(h.sizeHeader)
	if end := uint64(table) + uint64(sections)*sectionHeaderSize; end <= pageCeil(max(im.Headers, 1)) {
		im.Headers = max(im.Headers, end) // the page has it, whatever SizeOfHeaders says
	}
	raw, err := f.upTo(table, sections*sectionHeaderSize)
	if err != nil {
		return nil, err
	}
	if len(raw) < sections*sectionHeaderSize {
		return nil, refuse(StatusInvalidFileForSection, "the file ends in its section table")
	}
	if err := im.sections(f, h, raw); err != nil {
		return nil, err
	}
	if characteristics&fileRelocsStripped == 0 {
		im.fixups, im.fixupErr = openBlocks(im, f.r, uint64(h.relocRVA), uint64(h.relocSize))
	}
	if im.fixupErr != nil && !errors.As(im.fixupErr, new(*Refusal)) {
		return nil, im.fixupErr
	}
	return im, nil
}

// signature tells a PE header from those of older formats.
func signature(nt []byte) error {
	switch {
	case string(nt[:4]) == "PE\x00\x00":
		return nil
	case string(nt[:2]) == "LE" || string(nt[:2]) == "LX":
		return refuse(StatusInvalidImageLEFormat, "a linear executable, of OS/2 or a VxD")
	case string(nt[:2]) != "NE":
		return refuse(StatusInvalidImageProtect, "a program for DOS")
	}
	os2 := append(bytes.Clone(nt), make([]byte, 64)...) // IMAGE_OS2_HEADER.ne_exetyp lies at 0x36
	switch os2[0x36] {
	case 2:
		return refuse(StatusInvalidImageWin16, "a program for 16-bit Windows")
	case 5:
		return refuse(StatusInvalidImageProtect, "a program for DOS")
	}
	return refuse(StatusInvalidImageNEFormat, "a program for 16-bit OS/2")
}

// optional reads the optional header, and whether it is one of the machine's.
func (im *Image) optional(b []byte) (h optionalHeader, err error) {
	h = optionalHeader{
		code: le.Uint32(b[4:]), entry: le.Uint32(b[16:]),
		sectionAlign: le.Uint32(b[32:]), fileAlign: le.Uint32(b[36:]),
		sizeImage: le.Uint32(b[56:]), sizeHeader: le.Uint32(b[60:]),
		subsystem: le.Uint16(b[68:]), characteristics: le.Uint16(b[70:]),
	}
	dirs := optionalSize32
	switch magic := le.Uint16(b); {
	case magic == magic32 && im.Machine == I386:
		im.Bits = 32
		h.base = uint64(le.Uint32(b[28:]))
		h.stackReserve, h.stackCommit = uint64(le.Uint32(b[72:])), uint64(le.Uint32(b[76:]))
		h.heapReserve, h.heapCommit = uint64(le.Uint32(b[80:])), uint64(le.Uint32(b[84:]))
	case magic == magic64 && (im.Machine == AMD64 || im.Machine == ARM64):
		im.Bits, dirs = 64, optionalSize64
		h.base = le.Uint64(b[24:])
		h.stackReserve, h.stackCommit = le.Uint64(b[72:]), le.Uint64(b[80:])
		h.heapReserve, h.heapCommit = le.Uint64(b[88:]), le.Uint64(b[96:])
	case magic != magic32 && magic != magic64:
		return h, refuse(StatusInvalidImageFormat, "the optional header's magic is 0x%x", magic)
	default:
		return h, refuse(StatusInvalidImageFormat, "%v with the optional header of magic 0x%x", im.Machine, magic)
	}
	if n := le.Uint32(b[dirs-4:]); n > directoryBaseReloc {
		d := b[dirs+8*directoryBaseReloc:]
		h.relocRVA, h.relocSize = le.Uint32(d), le.Uint32(d[4:])
	}
	return h, nil
}

// checkPE refuses headers that no image can have.
func checkPE(im *Image, h optionalHeader, sections int, characteristics uint16) error {
	powerOf2 := func(n uint32) bool { return bits.OnesCount32(n) == 1 }
	why := ""
	switch {
	case characteristics&fileExecutableImage == 0:
		why = "it is not marked as executable: the linker found errors"
	case !powerOf2(h.fileAlign) || !powerOf2(h.sectionAlign):
		why = "an alignment is not a power of two"
	case h.fileAlign%sector != 0 && h.fileAlign != h.sectionAlign:
		why = "FileAlignment is not a multiple of 512"
	case h.sectionAlign < h.fileAlign:
		why = "SectionAlignment is less than FileAlignment"
	case h.sizeImage == 0:
		why = "SizeOfImage is 0"
	case uint64(h.sizeImage)+uint64(h.sectionAlign) > maxImage:
		why = "SizeOfImage is above 0x77000000"
	case h.sizeHeader >= h.sizeImage:
		why = "SizeOfHeaders is not less than SizeOfImage"
	case sections > maxSections:
		why = "there are more than 96 sections"
	case h.base%granularity != 0:
		why = "ImageBase is not a multiple of 64 KiB"
	case im.Machine == ARM64 && h.sectionAlign < PageSize:
		why = "arm64 has no sections smaller than pages"
	case im.Machine == ARM64 && h.characteristics&(dllNXCompat|dllDynamicBase) != dllNXCompat|dllDynamicBase:
		why = "on arm64 every image is NX_COMPAT and DYNAMIC_BASE"
	default:
		return nil
	}
	return refuse(StatusInvalidImageFormat, "%s", why)
}

// sections lays out the sections whose headers are in table.
func (im *Image) sections(f *file, h optionalHeader, table []byte) error {
	if im.Flat {
		return im.flat(f, h, table)
	}
	align := uint64(h.sectionAlign)
	round := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
	im.Size = round(uint64(h.sizeImage))
	next := round(max(im.Headers, 1))
	im.Subsections = append(im.Subsections, Subsection{
		Name: "headers", Size: min(next, im.Size), Raw: min(im.Headers, uint64(f.size), next, im.Size), Access: Read,
	})
	for ; len(table) > 0; table = table[sectionHeaderSize:] {
		s := section(table)
		name := string(bytes.TrimRight(table[:8], "\x00"))
		size := s.virtual
		if size == 0 {
			size = s.raw
		}
		// As in the file, one section follows another: no gaps, no overlaps, in order.
		switch {
		case size == 0:
			return refuse(StatusInvalidImageFormat, "section %q has no size", name)
		case s.rva != next:
			return refuse(StatusInvalidImageFormat, "section %q is at 0x%x, the one before ends at 0x%x", name, s.rva, next)
		case next > im.Size || round(size) > im.Size-next:
			return refuse(StatusInvalidImageFormat, "section %q ends behind SizeOfImage", name)
		}
		sub := Subsection{Name: name, RVA: next, Size: round(size), Access: s.access}
		if s.raw != 0 && s.offset != 0 {
			if err := sub.place(f, s); err != nil {
				return err
			}
		}
		im.Code = im.Code || s.access&Execute != 0
		im.Subsections = append(im.Subsections, sub)
		next += round(size)
	}
	return nil
}

// place says where the bytes of a section are in the file. What begins within a sector is read from the sector's start, up to
// the end of one; the last sector may be missing in part.
func (sub *Subsection) place(f *file, s sectionHeader) error {
	skip := s.offset % sector
	raw := s.raw
	if skip != 0 {
		raw = (skip + raw + sector - 1) &^ (sector - 1)
	}
	raw = min(raw, sub.Size)
	start := s.offset - skip
	if end := (uint64(f.size) + sector - 1) &^ (sector - 1); s.offset >= uint64(f.size) || start+raw > end {
		return refuse(StatusInvalidImageFormat, "the file ends in section %q", sub.Name)
	}
	sub.Offset, sub.Raw = int64(start), min(raw, uint64(f.size)-start)
	return nil
}

// flat lays out an image whose sections are smaller than pages: one subsection with all of the file, in which every section
// lies where it lies in the file.
func (im *Image) flat(f *file, h optionalHeader, table []byte) error {
	im.Size = pageCeil(uint64(h.sizeImage))
	for ; len(table) > 0; table = table[sectionHeaderSize:] {
		s := section(table)
		switch {
		case s.raw != 0 && s.offset != s.rva:
			return refuse(StatusInvalidImageFormat, "a section of less than a page lies elsewhere in the file than in memory")
		case s.rva+max(s.virtual, s.raw) > im.Size:
			return refuse(StatusInvalidImageFormat, "a section ends behind SizeOfImage")
		}
	}
	im.Subsections = []Subsection{{
		Name: "image", Size: im.Size, Raw: min(uint64(f.size), im.Size), Access: Read | Write | Execute,
	}}
	return nil
}

// sectionHeader is what is used of IMAGE_SECTION_HEADER.
type sectionHeader struct {
	virtual, rva, raw, offset uint64
	access                    Access
}

func section(b []byte) sectionHeader {
	s := sectionHeader{
		virtual: uint64(le.Uint32(b[8:])), rva: uint64(le.Uint32(b[12:])),
		raw: uint64(le.Uint32(b[16:])), offset: uint64(le.Uint32(b[20:])),
	}
	for _, bit := range []struct {
		flag uint32
		a    Access
	}{{sectionRead, Read}, {sectionWrite, Write}, {sectionExecute, Execute}, {sectionShared, Shared}} {
		if le.Uint32(b[36:])&bit.flag != 0 {
			s.access |= bit.a
		}
	}
	return s
}
