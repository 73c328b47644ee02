package image

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"

	"memfs/mapping/image/pefile"
)

// seeds are files that are images, and some that claim what they do not have.
func seeds() [][]byte {
	relocs := slices.Concat(pefile.RelocBlock(0x1000, 10<<12|8, 3<<12|0xffe, 4<<12|0x20, 0x8000), pefile.RelocBlock(0x1000, 10<<12))
	sections := []pefile.Section{
		{Name: ".text", Chars: rx, Data: bytes.Repeat([]byte{0xc3}, 0x300), Virtual: 0x1100},
		{Name: ".data", Chars: pefile.Read | pefile.Write | pefile.Shared, Data: []byte("data"), Virtual: 0x10000},
		{Name: ".reloc", Chars: pefile.Read, Data: relocs},
	}
	list := [][]byte{
		pefile.PE{Sections: sections, RelocRVA: 0x13000, RelocSize: uint32(len(relocs))}.Bytes(),
		pefile.PE{Machine: 0x14c, Sections: sections, RelocRVA: 0x13000, RelocSize: 0x1000}.Bytes(),
		pefile.Minimal(0x1000, rx, []byte{0xc3}, 0, 0).Bytes(),
		pefile.Minimal(0x1000, rx, []byte{0xc3}, 0x70000000, 0).Bytes(),
		pefile.PE{SectionAlign: 0x200, SizeImage: 0x1000, SizeHeaders: 0x200, Sections: []pefile.Section{{RVA: 0x200, Data: []byte{1}}}}.Bytes(),
	}
	return append(list, tinyELF(64), tinyELF(32))
}

// tinyELF is a shared object with a segment of code, one of data with zeros, and relocations of both kinds.
func tinyELF(bits int) []byte {
	c := &elf64
	if bits == 32 {
		c = &elf32
	}
	put := func(b []byte, v uint64) {
		if c.bits == 32 {
			le.PutUint32(b, uint32(v))
		} else {
			le.PutUint64(b, v)
		}
	}
	b := make([]byte, 0x1400)
	copy(b, "\x7fELF")
	b[4], b[5], b[6] = byte(bits/32), 1, 1
	le.PutUint16(b[16:], 3)
	le.PutUint16(b[18:], map[int]uint16{64: 62, 32: 3}[bits])
	put(b[c.entry:], 0x200)
	put(b[c.phoff:], uint64(c.header))
	le.PutUint16(b[c.phentsize:], uint16(c.program))
	le.PutUint16(b[c.phentsize+2:], 4)
	for i, p := range []program{
		{kind: 1, flags: 5, filesz: 0x1000, memsz: 0x1000},
		{kind: 1, flags: 6, offset: 0x1000, vaddr: 0x1000, filesz: 0x400, memsz: 0x4000},
		{kind: 2, flags: 6, offset: 0x1000, vaddr: 0x1000, filesz: uint64(8 * c.dyn), memsz: uint64(8 * c.dyn)},
		{kind: 0x6474e551, flags: 6},
	} {
		e := b[c.header+i*c.program:]
		le.PutUint32(e, uint32(p.kind))
		le.PutUint32(e[c.flags:], uint32(p.flags))
		put(e[c.offset:], p.offset)
		put(e[c.vaddr:], p.vaddr)
		put(e[c.filesz:], p.filesz)
		put(e[c.memsz:], p.memsz)
	}
	kind, length := uint64(7), c.rela
	if bits == 32 {
		kind, length = 17, c.rel
	}
	for i, d := range [][2]uint64{
		{kind, 0x1200}, {kind + 1, uint64(2 * length)}, {kind + 2, uint64(length)},
		{36, 0x1300}, {35, 2 * c.word}, {37, c.word},
	} {
		put(b[0x1000+i*c.dyn:], d[0])
		put(b[0x1000+i*c.dyn+int(c.word):], d[1])
	}
	for i := range 2 {
		put(b[0x1200+i*length:], 0x1380+uint64(i)*c.word)
		put(b[0x1200+i*length+int(c.word):], 8)
	}
	put(b[0x1300:], 0x1390)
	put(b[0x1300+int(c.word):], 0b1011)
	return b
}

func TestTinyELF(t *testing.T) {
	for _, bits := range []int{32, 64} {
		file := tinyELF(bits)
		im := mustOpen(t, file)
		if im.Bits != bits || im.Size != 0x5000 || im.Entry != 0x200 || !im.NXCompat || !im.Dynamic() {
			t.Errorf("%+v", im)
		}
		var places []uint64
		for f, err := range im.Fixups(bytes.NewReader(file), 0, im.Size) {
			if err != nil {
				t.Fatal(err)
			}
			places = append(places, f.RVA)
		}
		w := uint64(bits / 8)
		if want := []uint64{0x1380, 0x1380 + w, 0x1390, 0x1390 + w, 0x1390 + 3*w}; !slices.Equal(places, want) {
			t.Errorf("fixups at %x, want %x", places, want)
		}
	}
}

// examine uses an image in every way that a section does, on some of its pages, and says what it may not be.
func examine(t *testing.T, b []byte) {
	im, err := open(b)
	if err != nil {
		if !errors.As(err, new(*Refusal)) {
			t.Fatalf("%v is no refusal", err)
		}
		return
	}
	end := uint64(0)
	for _, s := range im.Subsections {
		switch {
		case s.RVA%PageSize != 0 || s.Size%PageSize != 0 || s.Size == 0:
			t.Fatalf("%q has 0x%x bytes at 0x%x: not whole pages", s.Name, s.Size, s.RVA)
		case s.RVA < end || s.Size > im.Size || s.RVA > im.Size-s.Size:
			t.Fatalf("%q is at 0x%x, before 0x%x, or behind the image's end", s.Name, s.RVA, end)
		case s.Raw > s.Size || s.Offset < 0 || s.Raw > uint64(len(b)) || uint64(s.Offset) > uint64(len(b))-s.Raw:
			t.Fatalf("%q takes 0x%x bytes at 0x%x of a file of 0x%x", s.Name, s.Raw, s.Offset, len(b))
		}
		end = s.RVA + s.Size
	}
	if im.Size%PageSize != 0 || im.Size == 0 || im.Base%granularity != 0 {
		t.Fatalf("%+v", im)
	}
	r := bytes.NewReader(b)
	yes, fixErr := im.Relocatable()
	places := 0
	for f, err := range im.Fixups(r, 0, im.Size) {
		if err == nil && f.RVA >= im.Size {
			t.Fatalf("a fixup at 0x%x of 0x%x", f.RVA, im.Size)
		}
		places++
	}
	if most := 64*len(b) + 1; places > most {
		t.Fatalf("%d fixups from a file of %d bytes", places, len(b))
	}
	pages := im.Size / PageSize
	for i := range min(pages, 24) {
		page := i
		if i%2 == 1 {
			page = pages - i/2 - 1
		}
		linked, moved := make([]byte, PageSize), make([]byte, PageSize)
		if err := im.ReadAt(r, linked, page*PageSize, 0); err != nil {
			t.Fatal(err)
		}
		if im.Zero(page) && slices.ContainsFunc(linked, func(b byte) bool { return b != 0 }) {
			t.Fatalf("page %d is not zero", page)
		}
		if fp, ok := im.FilePage(page); ok {
			file := make([]byte, PageSize)
			if n, err := r.ReadAt(file, int64(fp*PageSize)); n == 0 || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(file, linked) {
				t.Fatalf("page %d is not the file's page %d", page, fp)
			}
		}
		err := im.ReadAt(r, moved, page*PageSize, 0x7ffe0000)
		switch {
		case fixErr != nil:
			if err == nil && yes {
				t.Fatal("moved in spite of malformed relocations")
			}
		case err != nil:
			t.Fatal(err)
		case !im.Fixed(page) && !bytes.Equal(linked, moved):
			t.Fatalf("page %d changes with the base, and Fixed does not say so", page)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
		f.Add(b[:len(b)/2])
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(examine)
}

// TestDamage sets every byte of the headers and tables to what breaks most, and cuts the file off everywhere.
func TestDamage(t *testing.T) {
	for _, b := range seeds() {
		n := min(len(b), 0x1400)
		step := 2
		if testing.Short() {
			step = 11
		}
		for i := 0; i < n; i += step {
			if old := b[i]; i < 0x200 || old != 0 {
				for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff, old ^ 1, old + 1} {
					b[i] = v
					examine(t, b)
				}
				b[i] = old
			}
		}
		for n := 0; n < len(b); n += 3 {
			examine(t, b[:n])
		}
	}
}

// TestMemory is small files that describe as much memory as they can: they take no more than they have bytes for.
func TestMemory(t *testing.T) {
	pe := pefile.PE{SizeImage: maxImage - 0x10000, Sections: []pefile.Section{
		{Name: ".bss", RVA: 0x1000, Chars: pefile.Read | pefile.Write, Virtual: maxImage - 0x20000},
	}, RelocRVA: 0x1000, RelocSize: maxImage - 0x20000}.Bytes()
	elf := tinyELF(64)
	le.PutUint64(elf[elf64.header+elf64.program+elf64.memsz:], elfTop-0x10000)
	for _, b := range [][]byte{pe, elf} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		im := mustOpen(t, b)
		for range im.Fixups(bytes.NewReader(b), 0, im.Size) {
		}
		if err := im.ReadAt(bytes.NewReader(b), make([]byte, PageSize), im.Size-PageSize, 0); err != nil {
			t.Error(err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
			t.Errorf("%v of 0x%x bytes: %d KiB for a file of %d", im.Format, im.Size, n>>10, len(b))
		}
	}
}

// sparse is a file of zeros but for its beginning.
type sparse []byte

func (s sparse) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(s)) {
		copy(b, s[off:])
	}
	return len(b), nil
}

// TestSparse: a sparse file costs its owner nothing, so what it says of its size is not believed without end.
func TestSparse(t *testing.T) {
	const size = 1 << 40
	for name, change := range map[string]func(b []byte){
		"segment": func(b []byte) {
			e := b[elf64.header+elf64.program:]
			le.PutUint64(e[elf64.filesz:], size/2)
			le.PutUint64(e[elf64.memsz:], size/2)
		},
		"relocations": func(b []byte) {
			e := b[elf64.header+elf64.program:]
			le.PutUint64(e[elf64.filesz:], 1<<30)
			le.PutUint64(e[elf64.memsz:], 1<<30)
			le.PutUint64(b[0x1000+4*elf64.dyn+int(elf64.word):], 1<<29) // DT_RELRSZ: each word of zeros is one
		},
	} {
		b := tinyELF(64)
		change(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Open(sparse(b), size)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; err == nil || n > 256<<10 {
			t.Errorf("%s: %v, %d KiB", name, err, n>>10)
		}
	}
	b := tinyELF(64)
	if im := mustOpen(t, b); im.Bytes() < 16*4 || im.Bytes() > 1<<10 {
		t.Errorf("the fixups take %d bytes", im.Bytes())
	}
}

// failing is a file that cannot be read.
type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

// TestReadErrors: what the file's reader says is not mistaken for a malformed file.
func TestReadErrors(t *testing.T) {
	if _, err := Open(failing{}, 1000); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
	for _, b := range seeds() {
		im := mustOpen(t, b)
		if err := im.ReadAt(failing{}, make([]byte, 10), 0, 0); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%v", err)
		}
	}
}
