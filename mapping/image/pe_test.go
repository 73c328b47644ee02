package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"memfs/mapping/image/pefile"
)

func open(b []byte) (*Image, error) { return Open(bytes.NewReader(b), int64(len(b))) }

// status is what b is refused with; 0 if it is not.
func status(t *testing.T, b []byte) Status {
	t.Helper()
	im, err := open(b)
	var s Status
	switch {
	case err == nil:
		if im == nil {
			t.Fatal("neither an image nor an error")
		}
		return 0
	case !errors.As(err, &s):
		t.Fatalf("%v is no refusal", err)
	}
	return s
}

func mustOpen(t *testing.T, b []byte) *Image {
	t.Helper()
	im, err := open(b)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// whole reads all of an image at base+delta, a page at a time as faults do.
func whole(t *testing.T, im *Image, file []byte, delta uint64) []byte {
	t.Helper()
	b := make([]byte, im.Size)
	for at := uint64(0); at < im.Size; at += PageSize {
		if err := im.ReadAt(bytes.NewReader(file), b[at:at+PageSize], at, delta); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

const rx = pefile.Read | pefile.Execute

// TestProtection is win32.md's table of section characteristics.
func TestProtection(t *testing.T) {
	const (
		noAccess, readOnly, writeCopy         = 0x01, 0x02, 0x08
		execute, executeRead, executeWriteCpy = 0x10, 0x20, 0x80
		readWrite, executeReadWrite           = 0x04, 0x40
		r, w, x, s                            = pefile.Read, pefile.Write, pefile.Execute, pefile.Shared
	)
	for _, c := range []struct{ chars, want uint32 }{
		{0, noAccess}, {r, readOnly}, {w, writeCopy}, {r | w, writeCopy}, {x, execute}, {r | x, executeRead},
		{w | x, executeWriteCpy}, {r | w | x, executeWriteCpy},
		{s, noAccess}, {s | r, readOnly}, {s | w, readWrite}, {s | r | w, readWrite}, {s | r | w | x, executeReadWrite},
	} {
		for _, contents := range []uint32{0, 0x20, 0x40, 0x80} { // IMAGE_SCN_CNT_
			im := mustOpen(t, pefile.Minimal(0x1000, c.chars|contents, []byte(".text data"), 0, 0).Bytes())
			got, ok := im.At(0x1000)
			if !ok || got.Protection() != c.want {
				t.Errorf("characteristics 0x%x: protection 0x%x, want 0x%x", c.chars|contents, got.Protection(), c.want)
			}
			if h, _ := im.At(0); h.Protection() != readOnly {
				t.Errorf("the header's protection is 0x%x", h.Protection())
			}
		}
	}
}

func TestPELayout(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 0x1234/16+1)[:0x1234]
	file := pefile.PE{
		Base: 0x140000000, Entry: 0x1010, DLLChars: dllNXCompat | dllDynamicBase | dllHighEntropy, StackReserve: 0x200000,
		Sections: []pefile.Section{
			{Name: ".text", Chars: rx, Data: data},
			{Name: ".data", Chars: pefile.Read | pefile.Write, Data: []byte("initialised"), Virtual: 0x5000},
			{Name: ".bss", Chars: pefile.Read | pefile.Write, Virtual: 0x2345},
			{Name: ".rsrc", Chars: pefile.Read, Data: []byte("more than its size"), Virtual: 4},
		},
	}.Bytes()
	im := mustOpen(t, file)
	want := Image{
		Format: PE, Machine: AMD64, Bits: 64, Base: 0x140000000, Size: 0xC000, Entry: 0x1010, StackReserve: 0x200000,
		DLL: true, NXCompat: true, DynamicBase: true, HighEntropy: true, LargeAddressAware: true, Code: true,
	}
	got := *im
	got.Subsections, got.size, got.fixups, got.Headers, got.Subsystem = nil, 0, nil, 0, 0
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !im.Dynamic() {
		t.Error("it has DYNAMIC_BASE, code, and nothing to fix: the system chooses its base")
	}
	rvas := []uint64{0, 0x1000, 0x3000, 0x8000, 0xB000, 0xC000}
	for i, s := range im.Subsections {
		if s.RVA != rvas[i] || s.RVA+s.Size != rvas[i+1] {
			t.Errorf("%s is at 0x%x..0x%x, want 0x%x..0x%x", s.Name, s.RVA, s.RVA+s.Size, rvas[i], rvas[i+1])
		}
	}

	memory := make([]byte, im.Size)
	copy(memory, file[:im.Headers])
	copy(memory[0x1000:], data)
	copy(memory[0x3000:], "initialised")
	copy(memory[0xB000:], "more than its size") // the page has it
	for _, delta := range []uint64{0, 0x10000, ^uint64(0xffff)} {
		if !bytes.Equal(whole(t, im, file, delta), memory) {
			t.Errorf("at a distance of 0x%x the memory is not that of the file and zeros", delta)
		}
	}
	// Odd pieces are the same as pages.
	for _, at := range []uint64{0, 1, 0xfff, 0x2233, 0x3005, 0xBfff} {
		b := make([]byte, min(0x1801, im.Size-at))
		if err := im.ReadAt(bytes.NewReader(file), b, at, 0x10000); err != nil || !bytes.Equal(b, memory[at:at+uint64(len(b))]) {
			t.Errorf("0x%x bytes at 0x%x: %v, or wrong", len(b), at, err)
		}
	}
	for page, zero := range map[uint64]bool{0: false, 1: false, 2: false, 3: false, 4: true, 7: true, 8: true, 10: true, 11: false, 99: true} {
		if im.Zero(page) != zero {
			t.Errorf("page %d: zero is %v", page, !zero)
		}
	}
	// FileAlignment is 0x200: the text is not at a page of the file, so it cannot be the file's pages.
	if p, ok := im.FilePage(1); ok {
		t.Errorf("page 1 is page %d of the file", p)
	}
	if p, ok := im.FilePage(0); ok {
		t.Errorf("the headers' page, which has zeros behind them, is page %d of the file", p)
	}
}

// TestFilePages is an image whose sections lie at pages of the file: those are the file's own.
func TestFilePages(t *testing.T) {
	file := pefile.PE{
		FileAlign: 0x1000,
		Sections: []pefile.Section{
			{Name: ".text", Chars: rx, Data: bytes.Repeat([]byte{0xcc}, 0x1800)}, // padded to 0x2000, which SizeOfRawData leaves out
			{Name: ".data", Chars: pefile.Read | pefile.Write, Data: bytes.Repeat([]byte{1}, 0x1000), Virtual: 0x3000},
			{Name: ".end", Chars: pefile.Read, Data: []byte("the end")},
		},
		Unpadded: true,
	}.Bytes()
	im := mustOpen(t, file)
	want := map[uint64]uint64{0: 0, 1: 1, 3: 3, 6: 4} // page 2: more follows in the file; 4, 5: zeros; 6 ends with the file
	for page := range im.Size / PageSize {
		got, ok := im.FilePage(page)
		if w, has := want[page]; ok != has || got != w {
			t.Errorf("page %d is page %d of the file, %v; want %d, %v", page, got, ok, w, has)
		}
		if !ok {
			continue
		}
		b := make([]byte, PageSize)
		copy(b, file[got*PageSize:])
		if !bytes.Equal(b, whole(t, im, file, 0)[page*PageSize:][:PageSize]) {
			t.Errorf("page %d is not what the file's page %d has", page, got)
		}
	}
}

// TestSectors are sections that begin within a sector: they are read from its start, to the end of one.
func TestSectors(t *testing.T) {
	p := pefile.PE{Sections: []pefile.Section{
		{Name: ".odd", RVA: 0x1000, Chars: pefile.Read, Virtual: 100, Raw: 10, Offset: 64},
	}}
	file := p.Bytes()
	im := mustOpen(t, file)
	b := whole(t, im, file, 0)[0x1000:]
	if !bytes.Equal(b[:512], file[:512]) || !bytes.Equal(b[512:], make([]byte, len(b)-512)) {
		t.Error("what begins at 64 is not mapped as the sector that it is in")
	}
	// What begins with a sector ends with SizeOfRawData.
	file = pefile.Minimal(0x1000, pefile.Read, []byte("0123456789"), 0, 4).Bytes()
	b = whole(t, mustOpen(t, file), file, 0)[0x1000:]
	if string(b[:4]) != "0123" || !bytes.Equal(b[4:], make([]byte, len(b)-4)) {
		t.Errorf("behind SizeOfRawData there is %q", b[:16])
	}
}

// TestHeaders is what real Windows loads and refuses; most cases are those that Wine's tests of the loader assert.
func TestHeaders(t *testing.T) {
	section := func(p pefile.PE) pefile.PE {
		if p.Sections == nil {
			p.Sections = []pefile.Section{{Name: ".text", RVA: 0x1000, Chars: pefile.Read, Data: make([]byte, 16)}}
		}
		return p
	}
	patch := func(at int, v ...byte) func([]byte) {
		return func(b []byte) { copy(b[at:], v) }
	}
	const pe, opt = 64, 64 + 24
	none := func([]byte) {}
	for _, c := range []struct {
		name  string
		p     pefile.PE
		patch func([]byte)
		want  Status
	}{
		{"as linked", pefile.PE{}, none, 0},
		{"x86", pefile.PE{Machine: 0x14c}, none, 0},
		{"arm64", pefile.PE{Machine: 0xaa64, DLLChars: dllNXCompat | dllDynamicBase}, none, 0},
		{"arm64 without NX_COMPAT", pefile.PE{Machine: 0xaa64, DLLChars: dllDynamicBase}, none, StatusInvalidImageFormat},
		{"arm64 without DYNAMIC_BASE", pefile.PE{Machine: 0xaa64, DLLChars: dllNXCompat}, none, StatusInvalidImageFormat},
		{"not MZ", pefile.PE{}, patch(0, 0), StatusInvalidImageNotMZ},
		{"NE", pefile.PE{}, patch(pe, 'N', 'E'), StatusInvalidImageNEFormat},
		{"NE for Windows", pefile.PE{}, func(b []byte) { patch(pe, 'N', 'E')(b); b[pe+0x36] = 2 }, StatusInvalidImageWin16},
		{"NE for DOS 4", pefile.PE{}, func(b []byte) { patch(pe, 'N', 'E')(b); b[pe+0x36] = 5 }, StatusInvalidImageProtect},
		{"LE", pefile.PE{}, patch(pe, 'L', 'E', 0, 0), StatusInvalidImageLEFormat},
		{"LX", pefile.PE{}, patch(pe, 'L', 'X', 0, 0), StatusInvalidImageLEFormat},
		{"a signature of noise", pefile.PE{}, patch(pe, 0xef, 0xbe, 0xad, 0xde), StatusInvalidImageProtect},
		{"e_lfanew behind the file", pefile.PE{}, patch(0x3c, 0, 0, 0x76, 0x98), StatusInvalidImageProtect},
		{"e_lfanew at the file's end", pefile.PE{}, func(b []byte) { binary.LittleEndian.PutUint32(b[0x3c:], uint32(len(b)-20)) }, StatusInvalidImageProtect},
		{"magic of noise", pefile.PE{}, patch(opt, 0xad, 0xde), StatusInvalidImageFormat},
		{"machine of noise", pefile.PE{}, patch(pe+4, 0xad, 0xde), StatusInvalidImageFormat},
		{"no machine", pefile.PE{}, patch(pe+4, 0, 0), StatusInvalidImageFormat},
		{"x86 with a 64-bit header", pefile.PE{}, patch(pe+4, 0x4c, 1), StatusInvalidImageFormat},
		{"x64 with a 32-bit header", pefile.PE{Machine: 0x14c}, patch(pe+4, 0x64, 0x86), StatusInvalidImageFormat},
		{"32-bit ARM", pefile.PE{Machine: 0x14c}, patch(pe+4, 0xc4, 1), StatusInvalidImageFormat},
		{"not executable", pefile.PE{Characteristics: 0x2000}, none, StatusInvalidImageFormat},
		{"no optional header", pefile.PE{}, func(b []byte) { clear(b[opt : opt+240]); clear(b[pe+20 : pe+22]) }, StatusInvalidImageFormat},
		{"entry point outside", pefile.PE{Entry: 0x12345678}, none, 0},
		{"base in the middle of 64 KiB", pefile.PE{Base: 0x180001000}, none, StatusInvalidImageFormat},

		{"too small", pefile.PE{SizeImage: 0xf70}, none, StatusInvalidImageFormat},
		{"too small by a page", pefile.PE{SizeImage: 0x1000, SizeHeaders: 0x200}, none, StatusInvalidImageFormat},
		{"not whole pages", pefile.PE{SizeImage: 0x1f00, SizeHeaders: 0x1000}, none, 0},
		{"just as large", pefile.PE{SizeImage: 0x1170, SizeHeaders: 0x170}, none, 0},
		{"larger", pefile.PE{SizeImage: 0x10000}, none, 0},
		{"size 0", pefile.PE{SizeImage: 0xffffffff}, patch(opt+56, 0, 0, 0, 0), StatusInvalidImageFormat},
		{"of 4 GiB", pefile.PE{SizeImage: 0xfffff000}, none, StatusInvalidImageFormat},
		{"headers as large as all", pefile.PE{SizeImage: 0x2000, SizeHeaders: 0x2000}, none, StatusInvalidImageFormat},
		{"alignments 0x1000", pefile.PE{FileAlign: 0x1000}, none, 0},
		{"SectionAlignment below FileAlignment", pefile.PE{SectionAlign: 0x200, FileAlign: 0x1000}, none, StatusInvalidImageFormat},
		{"FileAlignment 0x100", pefile.PE{FileAlign: 0x100}, none, StatusInvalidImageFormat},
		{"FileAlignment 0x300", pefile.PE{FileAlign: 0x300}, none, StatusInvalidImageFormat},
		{"alignments 0", pefile.PE{}, patch(opt+32, 0, 0, 0, 0, 0, 0, 0, 0), StatusInvalidImageFormat},
		{"SectionAlignment 0x10000", pefile.PE{SectionAlign: 0x10000, SizeImage: 0x20000, Sections: []pefile.Section{{RVA: 0x10000, Data: make([]byte, 16)}}}, none, 0},
		{"optional header of upack", pefile.PE{Optional: 0x148}, none, 0},
		{"97 sections", pefile.PE{Sections: make([]pefile.Section, 97)}, none, StatusInvalidImageFormat},
		{"table behind the file", pefile.PE{}, patch(pe+20, 0xf0, 0x7f), StatusInvalidFileForSection},

		{"gap before", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x2000, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"gap between", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x1000, Data: make([]byte, 16)}, {RVA: 0x3000, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"overlapping", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x1000, Data: make([]byte, 0x1800)}, {RVA: 0x2000, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"out of order", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x2000, Data: make([]byte, 16)}, {RVA: 0x1000, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"over the headers", pefile.PE{Sections: []pefile.Section{{RVA: 0x10, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"unaligned", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x1010, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"empty section", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x1000}}}, none, StatusInvalidImageFormat},
		{"of 4 GiB virtually", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x1000, Virtual: 0xffffffff}}}, none, StatusInvalidImageFormat},
		{"raw data behind the file", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x1000, Virtual: 0x8000, Raw: 0x1000, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"raw data of 4 GiB, of which a page counts", pefile.PE{SizeImage: 0x2000, Sections: []pefile.Section{{RVA: 0x1000, Virtual: 16, Raw: 0xffffffff, Offset: 0x200}}}, none, StatusInvalidImageFormat},
		{"raw data beginning behind the file", pefile.PE{SizeImage: 0x10000, Sections: []pefile.Section{{RVA: 0x1000, Virtual: 16, Raw: 16, Offset: 0xfffffe00}}}, none, StatusInvalidImageFormat},
		{"the last sector in part", pefile.PE{Unpadded: true, SizeImage: 0x2000, Sections: []pefile.Section{{RVA: 0x1000, Raw: 0x200, Data: make([]byte, 16)}}}, none, 0},

		{"flat", pefile.PE{SectionAlign: 0x200, SizeImage: 0x400, SizeHeaders: 0x200, Sections: []pefile.Section{{RVA: 0x200, Data: make([]byte, 16)}}}, none, 0},
		{"flat, by bytes", pefile.PE{SectionAlign: 4, FileAlign: 4, SizeImage: 0x1000, SizeHeaders: 0x40, Sections: []pefile.Section{}}, none, 0},
		{"flat, elsewhere in the file", pefile.PE{SectionAlign: 0x200, SizeImage: 0x800, SizeHeaders: 0x200, Sections: []pefile.Section{{RVA: 0x400, Data: make([]byte, 16)}}}, none, StatusInvalidImageFormat},
		{"flat, behind SizeOfImage", pefile.PE{SectionAlign: 0x200, SizeImage: 0x210, SizeHeaders: 0x200, Sections: []pefile.Section{{RVA: 0x200, Data: make([]byte, 16), Virtual: 0x10000}}}, none, StatusInvalidImageFormat},
	} {
		b := section(c.p).Bytes()
		c.patch(b)
		if got := status(t, b); got != c.want {
			_, err := open(b)
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, c := range []struct {
		file string
		want Status
	}{
		{"", StatusInvalidFileForSection}, {"M", StatusInvalidImageNotMZ}, {"MZ", StatusInvalidImageNotMZ},
		{"#!/bin/sh\necho a script, longer than the header of a program for DOS, but no program for Windows\n", StatusInvalidImageNotMZ},
		{string(make([]byte, 0x3456)), StatusInvalidImageNotMZ},
		{"MZ" + string(make([]byte, 62)), StatusInvalidImageProtect},
	} {
		if got := status(t, []byte(c.file)); got != c.want {
			t.Errorf("%.10q: %v, want %v", c.file, got, c.want)
		}
	}
}

// TestFlat is an image with sections smaller than pages: all of it is one piece, as in the file.
func TestFlat(t *testing.T) {
	file := pefile.PE{SectionAlign: 0x200, SizeImage: 0x2400, SizeHeaders: 0x200, DLLChars: dllDynamicBase, Sections: []pefile.Section{
		{RVA: 0x200, Chars: pefile.Read, Data: bytes.Repeat([]byte{7}, 0x1234)},
	}}.Bytes()
	im := mustOpen(t, file)
	if len(im.Subsections) != 1 || im.Subsections[0].Protection() != 0x80 || im.Subsections[0].Size != 0x3000 {
		t.Errorf("%+v, want 0x3000 bytes of PAGE_EXECUTE_WRITECOPY", im.Subsections)
	}
	if b := whole(t, im, file, 0); !bytes.Equal(b[:len(file)], file) || !bytes.Equal(b[len(file):], make([]byte, 0x3000-len(file))) {
		t.Error("it is not mapped as it lies in the file, with zeros behind")
	}
	if im.Dynamic() || !im.Flat {
		t.Error("Windows gives a flat image no base of its own")
	}
}

// TestFixups applies every kind of base relocation, on and across pages, and compares a page at a time with all at once.
func TestFixups(t *testing.T) {
	data := make([]byte, 0x3000)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	relocs := slices.Concat(
		pefile.RelocBlock(0x3000, 10<<12|0xffc), // out of order, and across pages
		pefile.RelocBlock(0x1000, 10<<12|0x10, 3<<12|0x20, 1<<12|0x30, 2<<12|0x40, 4<<12|0x50, 0x9234, 0, 3<<12|0xffd, 10<<12|0xfff),
		pefile.RelocBlock(0x2100, 3<<12|0xf80), // the block is not at a page: 0x3080
	)
	build := func(relocs []byte) []byte {
		return pefile.PE{
			Base: 0x180000000, DLLChars: dllDynamicBase,
			Sections: []pefile.Section{
				{Name: ".text", Chars: rx, Data: data},
				{Name: ".rdata", Chars: pefile.Read, Data: make([]byte, 0x1000)},
				{Name: ".reloc", Chars: pefile.Read, Data: relocs, Virtual: 0x1000},
			},
			RelocRVA: 0x5000, RelocSize: uint32(len(relocs)),
		}.Bytes()
	}
	file := build(relocs)
	im := mustOpen(t, file)
	if yes, err := im.Relocatable(); !yes || err != nil || !im.Dynamic() {
		t.Fatalf("relocatable: %v, %v", yes, err)
	}
	const delta = 0x7ff612348000
	want := whole(t, im, file, 0)
	if !bytes.Equal(want[0x1000:0x4000], data) {
		t.Fatal("at its base the image is not the file's bytes")
	}
	add := func(at int, f func(b []byte)) { f(want[at:]) }
	le := binary.LittleEndian
	d := uint64(delta)
	dir64 := func(b []byte) { le.PutUint64(b, le.Uint64(b)+d) }
	highLow := func(b []byte) { le.PutUint32(b, le.Uint32(b)+uint32(d)) }
	add(0x1010, dir64)
	add(0x1020, highLow)
	add(0x1030, func(b []byte) { le.PutUint16(b, le.Uint16(b)+uint16(d>>16)) }) // no carry: the low half of the delta has no word to add to
	add(0x1040, func(b []byte) { le.PutUint16(b, le.Uint16(b)+uint16(d)) })
	add(0x1050, func(b []byte) {
		low := uint16(0x9234)
		address := uint32(le.Uint16(b))<<16 + uint32(int32(int16(low))) + uint32(d)
		le.PutUint16(b, uint16((address+0x8000)>>16))
	})
	add(0x1ffd, highLow)
	add(0x1fff, dir64)
	add(0x3080, highLow)
	add(0x3ffc, dir64)
	if got := whole(t, im, file, delta); !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("the first byte that is wrong is at 0x%x: 0x%02x, want 0x%02x", i, got[i], want[i])
			}
		}
	}
	all := make([]byte, im.Size)
	if err := im.ReadAt(bytes.NewReader(file), all, 0, delta); err != nil || !bytes.Equal(all, want) {
		t.Error("read as one piece it is not the same")
	}
	for page, fixed := range []bool{false, true, true, true, true, false} {
		// A page is fixed if it differs; saying so of one that does not is allowed, but not of one that no block can reach.
		if fixed && !im.Fixed(uint64(page)) || !fixed && page != 5 && im.Fixed(uint64(page)) {
			t.Errorf("page %d: fixed is %v", page, !fixed)
		}
	}
	n := 0
	for _, err := range im.Fixups(bytes.NewReader(file), 0, im.Size) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 9 {
		t.Errorf("there are %d fixups, want 9", n)
	}

	for name, bad := range map[string][]byte{
		"a block of 4 bytes":         {0, 0x10, 0, 0, 4, 0, 0, 0},
		"a block larger than all":    {0, 0x10, 0, 0, 0xff, 0xff, 0, 0},
		"a block of odd size":        {0, 0x10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0},
		"an unknown kind":            pefile.RelocBlock(0x1000, 9<<12|4),
		"a place outside of all":     pefile.RelocBlock(0x80000000, 10<<12|4),
		"a place behind SizeOfImage": pefile.RelocBlock(0x6000, 10<<12|4),
	} {
		b := build(bad)
		im := mustOpen(t, b) // at its base nobody looks
		if _, err := im.Relocatable(); !errors.Is(err, StatusInvalidImageFormat) || im.Dynamic() {
			t.Errorf("%s: %v, want %v", name, err, StatusInvalidImageFormat)
		}
		if err := im.ReadAt(bytes.NewReader(b), make([]byte, 10), 0x1000, 0x10000); !errors.Is(err, StatusInvalidImageFormat) {
			t.Errorf("%s, elsewhere: %v, want %v", name, err, StatusInvalidImageFormat)
		}
		if err := im.ReadAt(bytes.NewReader(b), make([]byte, 10), 0x1000, 0); err != nil {
			t.Errorf("%s, at its base: %v", name, err)
		}
	}
	stripped := mustOpen(t, pefile.PE{NoFixups: true, DLLChars: dllDynamicBase, Sections: []pefile.Section{{Chars: rx, Data: []byte{0xc3}}}}.Bytes())
	if yes, err := stripped.Relocatable(); yes || err != nil || stripped.Dynamic() {
		t.Errorf("without relocations: relocatable is %v, %v", yes, err)
	}
}
