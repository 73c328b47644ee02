// Package pefile writes PE files: as small as they can be, and as wrong as a test or a dialogue wants them.
package pefile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// The characteristics of a section.
const (
	Shared  = 0x10000000
	Execute = 0x20000000
	Read    = 0x40000000
	Write   = 0x80000000
)

// Section is one section. Where a field of the header is 0, it is what Data asks for.
type Section struct {
	Name    string
	Chars   uint32
	Data    []byte
	RVA     uint32 // 0: behind the section before
	Virtual uint32 // VirtualSize
	Raw     uint32 // SizeOfRawData
	Offset  uint32 // PointerToRawData; Data is not there then
}

// PE is a PE file. Fields that are 0 are what a linker would write.
type PE struct {
	Machine                     uint16 // 0: x64
	Base                        uint64 // 0: 0x180000000, or 0x10000000 for x86
	Entry                       uint32
	SectionAlign, FileAlign     uint32
	SizeImage, SizeHeaders      uint32
	Characteristics, DLLChars   uint16
	StackReserve, StackCommit   uint64 // of StackReserve 0: 0x100000
	HeapReserve, HeapCommit     uint64
	Sections                    []Section
	RelocRVA, RelocSize         uint32
	Optional                    uint16 // SizeOfOptionalHeader
	Unpadded, NoFixups, Program bool   // the last section's data ends the file; RELOCS_STRIPPED; no DLL
}

// Minimal is a DLL for x64 with one section. 0 is what data asks for.
func Minimal(va, chars uint32, data []byte, imageSize, rawSize uint32) PE {
	return PE{
		Sections:  []Section{{Name: ".test", RVA: va, Chars: chars, Data: data, Raw: rawSize}},
		SizeImage: imageSize, Unpadded: true,
	}
}

func or[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

func up(n, align uint32) uint32 { return (n + align - 1) / align * align }

// Bytes is the file.
func (p PE) Bytes() []byte {
	const peAt, fileHeader, x86 = 64, 20, 0x14c
	machine := or(p.Machine, 0x8664)
	base, optional, dirs := or(p.Base, 0x180000000), uint16(240), 112
	if machine == x86 {
		base, optional, dirs = or(p.Base, 0x10000000), 224, 96
	}
	optional = or(p.Optional, optional)
	sectionAlign, fileAlign := or(p.SectionAlign, 0x1000), or(p.FileAlign, 0x200)
	table := peAt + 4 + fileHeader + int(optional)
	headers := or(p.SizeHeaders, up(uint32(table+40*len(p.Sections)), fileAlign))

	b := make([]byte, max(int(up(uint32(table+40*len(p.Sections)), fileAlign)), table+128))
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], peAt)
	copy(b[peAt:], "PE\x00\x00")
	h := b[peAt+4:]
	le.PutUint16(h, machine)
	le.PutUint16(h[2:], uint16(len(p.Sections)))
	le.PutUint16(h[16:], optional)
	chars := uint16(0x2002) // EXECUTABLE_IMAGE, DLL
	if p.Program {
		chars = 2
	}
	if p.NoFixups {
		chars |= 1
	}
	if machine == x86 {
		chars |= 0x100
	} else {
		chars |= 0x20
	}
	le.PutUint16(h[18:], or(p.Characteristics, chars))

	end := up(headers, sectionAlign)
	at := uint32(len(b))
	for i, s := range p.Sections {
		e := b[table+40*i:]
		copy(e[:8], s.Name)
		rva := or(s.RVA, end)
		virtual := or(s.Virtual, uint32(len(s.Data)))
		raw, offset := or(s.Raw, uint32(len(s.Data))), s.Offset
		if offset == 0 && raw != 0 {
			offset = at
		}
		le.PutUint32(e[8:], virtual)
		le.PutUint32(e[12:], rva)
		le.PutUint32(e[16:], raw)
		le.PutUint32(e[20:], offset)
		le.PutUint32(e[36:], s.Chars)
		end = up(rva+max(virtual, 1), sectionAlign)
		if s.Offset == 0 {
			at = up(at+uint32(len(s.Data)), fileAlign)
		}
	}

	o := b[peAt+4+fileHeader:]
	le.PutUint32(o[4:], 0)
	le.PutUint32(o[16:], p.Entry)
	le.PutUint32(o[32:], sectionAlign)
	le.PutUint32(o[36:], fileAlign)
	le.PutUint32(o[56:], or(p.SizeImage, end))
	le.PutUint32(o[60:], headers)
	le.PutUint16(o[68:], 3)
	le.PutUint16(o[70:], p.DLLChars)
	if machine == x86 {
		le.PutUint16(o, 0x10b)
		le.PutUint32(o[28:], uint32(base))
		for i, n := range []uint64{or(p.StackReserve, 0x100000), p.StackCommit, p.HeapReserve, p.HeapCommit} {
			le.PutUint32(o[72+4*i:], uint32(n))
		}
	} else {
		le.PutUint16(o, 0x20b)
		le.PutUint64(o[24:], base)
		for i, n := range []uint64{or(p.StackReserve, 0x100000), p.StackCommit, p.HeapReserve, p.HeapCommit} {
			le.PutUint64(o[72+8*i:], n)
		}
	}
	le.PutUint32(o[dirs-4:], 16)
	le.PutUint32(o[dirs+5*8:], p.RelocRVA)
	le.PutUint32(o[dirs+5*8+4:], p.RelocSize)

	for i, s := range p.Sections {
		if s.Offset != 0 {
			continue
		}
		b = append(b, make([]byte, int(up(uint32(len(b)), fileAlign))-len(b))...)
		b = append(b, s.Data...)
		if i == len(p.Sections)-1 && p.Unpadded {
			continue
		}
		b = append(b, make([]byte, int(up(uint32(len(b)), fileAlign))-len(b))...)
	}
	return b
}

// RelocBlock is a block of base relocations: entries are kind<<12 | offset.
func RelocBlock(page uint32, entries ...uint16) []byte {
	if len(entries)%2 != 0 {
		entries = append(entries, 0)
	}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, []uint32{page, uint32(8 + 2*len(entries))})
	_ = binary.Write(&b, binary.LittleEndian, entries)
	return b.Bytes()
}

// Options are those of the line that makes a PE file in a dialogue: va= chars= data= imagesize= rawsize=, and what a linker
// can be told besides: machine= base= dllchars= filechars= entry= stackreserve= stackcommit= heapreserve= heapcommit=. Flags are
// joined by |. Without filechars it is a DLL.
type Options struct {
	pe PE
	s  Section
}

var sectionChars = map[string]uint32{
	"IMAGE_SCN_MEM_SHARED": Shared, "IMAGE_SCN_MEM_EXECUTE": Execute, "IMAGE_SCN_MEM_READ": Read, "IMAGE_SCN_MEM_WRITE": Write,
	"IMAGE_SCN_CNT_CODE": 0x20, "IMAGE_SCN_CNT_INITIALIZED_DATA": 0x40, "IMAGE_SCN_CNT_UNINITIALIZED_DATA": 0x80,
}

// Set sets one of them.
func (o *Options) Set(name, value string) error {
	if name == "data" {
		b, err := hex.DecodeString(value)
		o.s.Data = b
		return err
	}
	total := uint64(0)
	for word := range strings.SplitSeq(value, "|") {
		n, ok := sectionChars[word]
		if !ok {
			v, err := strconv.ParseUint(word, 0, 64)
			if err != nil {
				return err
			}
			total |= v
			continue
		}
		total |= uint64(n)
	}
	switch name {
	case "va":
		o.s.RVA = uint32(total)
	case "chars":
		o.s.Chars = uint32(total)
	case "imagesize":
		o.pe.SizeImage = uint32(total)
	case "rawsize":
		o.s.Raw = uint32(total)
	case "machine":
		o.pe.Machine = uint16(total)
	case "base":
		o.pe.Base = total
	case "dllchars":
		o.pe.DLLChars = uint16(total)
	case "filechars":
		o.pe.Characteristics = uint16(total)
	case "entry":
		o.pe.Entry = uint32(total)
	case "stackreserve":
		o.pe.StackReserve = total
	case "stackcommit":
		o.pe.StackCommit = total
	case "heapreserve":
		o.pe.HeapReserve = total
	case "heapcommit":
		o.pe.HeapCommit = total
	default:
		return fmt.Errorf("%s is not understood", name)
	}
	return nil
}

// File is the PE file that they ask for.
func (o *Options) File() []byte {
	p, s := o.pe, o.s
	s.Name = ".test"
	p.Sections, p.Unpadded = []Section{s}, true
	return p.Bytes()
}
