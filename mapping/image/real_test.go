package image

import (
	"bytes"
	"debug/elf"
	"debug/pe"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// build compiles testdata/lib.c. It skips the test if there is no such compiler.
func build(t *testing.T, compiler string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(compiler); err != nil {
		t.Skip(err)
	}
	out := filepath.Join(t.TempDir(), "lib.bin")
	cmd := exec.Command(compiler, append(args, "-nostdlib", "-O1", "-o", out, "testdata/lib.c")...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMingw links one DLL for two bases: moved from one to the other, an image is the other file's.
func TestMingw(t *testing.T) {
	for _, c := range []struct {
		compiler     string
		machine      Machine
		first, other string
		delta        uint64
	}{
		{"x86_64-w64-mingw32-gcc", AMD64, "0x180000000", "0x7ff6543210000", 0x7ff6543210000 - 0x180000000},
		{"i686-w64-mingw32-gcc", I386, "0x10000000", "0x12340000", 0x02340000},
	} {
		t.Run(c.machine.String(), func(t *testing.T) {
			link := func(base string) []byte {
				return build(t, c.compiler, "-shared", "-Wl,--no-insert-timestamp,--dynamicbase,--nxcompat", "-Wl,--image-base,"+base)
			}
			a, b := link(c.first), link(c.other)
			im, want := mustOpen(t, a), mustOpen(t, b)
			if im.Machine != c.machine || !im.DLL || !im.NXCompat || !im.DynamicBase || !im.Dynamic() || im.Base+c.delta != want.Base {
				t.Errorf("%+v", im)
			}
			comparePE(t, im, a)
			moved, there := whole(t, im, a, c.delta), whole(t, want, b, 0)
			fixed := 0
			for page := uint64(1); page < im.Size/PageSize; page++ { // the header has the base and a checksum
				at := page * PageSize
				if !bytes.Equal(moved[at:at+PageSize], there[at:at+PageSize]) {
					t.Errorf("page %d is not what the linker makes of it", page)
				}
				if same := bytes.Equal(whole(t, im, a, 0)[at:at+PageSize], there[at:at+PageSize]); !same {
					fixed++
					if !im.Fixed(page) {
						t.Errorf("page %d changes with the base, and Fixed does not say so", page)
					}
				}
			}
			if fixed == 0 {
				t.Error("nothing was to be fixed: the test needs addresses")
			}
		})
	}
}

// comparePE holds an image against what debug/pe reads of the file.
func comparePE(t *testing.T, im *Image, file []byte) {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	memory := whole(t, im, file, 0)
	for i, s := range f.Sections {
		sub := im.Subsections[i+1]
		if sub.Name != s.Name && !strings.HasPrefix(sub.Name, "/") || sub.RVA != uint64(s.VirtualAddress) {
			t.Errorf("%s at 0x%x, want %s at 0x%x", sub.Name, sub.RVA, s.Name, s.VirtualAddress)
		}
		raw, err := s.Data()
		if err != nil && s.Size > 0 {
			t.Fatal(err)
		}
		have := memory[sub.RVA : sub.RVA+sub.Size]
		raw = raw[:min(len(raw), len(have))]
		if s.Offset == 0 {
			raw = nil
		}
		if !bytes.Equal(have[:len(raw)], raw) || slices.ContainsFunc(have[len(raw):], func(b byte) bool { return b != 0 }) {
			t.Errorf("%s is not the section and zeros", s.Name)
		}
		for bit, a := range map[uint32]Access{pe.IMAGE_SCN_MEM_READ: Read, pe.IMAGE_SCN_MEM_WRITE: Write, pe.IMAGE_SCN_MEM_EXECUTE: Execute} {
			if s.Characteristics&bit != 0 != (sub.Access&a != 0) {
				t.Errorf("%s may be used as %03b", s.Name, sub.Access)
			}
		}
	}
}

// TestELFBuilt is a shared object by the test's own compiler, with its relocations as words, and packed.
func TestELFBuilt(t *testing.T) {
	plain := build(t, "gcc", "-shared", "-fPIC", "-Wl,-z,noexecstack")
	im := mustOpen(t, plain)
	if im.Bits != 64 || im.Base != 0 || !im.DLL || !im.NXCompat || !im.Dynamic() || im.Entry != 0 {
		t.Errorf("%+v", im)
	}
	compareELF(t, im, plain)
	if stack := mustOpen(t, build(t, "gcc", "-shared", "-fPIC", "-Wl,-z,execstack")); stack.NXCompat {
		t.Error("with an executable stack it is NX_COMPAT")
	}
	program := mustOpen(t, build(t, "gcc", "-no-pie", "-static", "-Wl,-e,count"))
	if program.DLL || program.Base != 0x400000 || program.Entry == 0 || program.DynamicBase || program.Dynamic() {
		t.Errorf("a program that was linked for its base: %+v", program)
	}
	if yes, _ := program.Relocatable(); yes {
		t.Error("it can be relocated")
	}

	packed := build(t, "gcc", "-shared", "-fPIC", "-Wl,-z,pack-relative-relocs")
	other := mustOpen(t, packed)
	compareELF(t, other, packed)
	places := func(im *Image, b []byte) (list []uint64) {
		for f, err := range im.Fixups(bytes.NewReader(b), 0, im.Size) {
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, f.RVA)
		}
		return list
	}
	// Packed, the file has other tables, so that its data is elsewhere: what the words point to must be the same.
	a, b := places(im, plain), places(other, packed)
	if len(a) == 0 || len(a) != len(b) {
		t.Fatalf("%d relocations, %d when packed", len(a), len(b))
	}
	const delta = 0x7f1234560000
	ma, mb := whole(t, im, plain, delta), whole(t, other, packed, delta)
	for i := range a {
		pa, pb := le.Uint64(ma[a[i]:])-delta, le.Uint64(mb[b[i]:])-delta
		if pa >= im.Size || pb >= other.Size {
			t.Errorf("0x%x and 0x%x do not point into the image", pa, pb)
			continue
		}
		if sa, _ := im.At(pa); sa.Access&Execute != 0 && !bytes.Equal(ma[pa:pa+8], mb[pb:pb+8]) {
			t.Errorf("0x%x and 0x%x point to different code", pa, pb)
		}
	}
}

// TestELFInstalled reads the shared objects that the system has.
func TestELFInstalled(t *testing.T) {
	n := 0
	for _, dir := range []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib/aarch64-linux-gnu"} {
		files, _ := filepath.Glob(filepath.Join(dir, "lib[cmps]*.so.*"))
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil || len(b) > 8<<20 || n >= 40 {
				continue
			}
			im, err := open(b)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			n++
			t.Run(filepath.Base(name), func(t *testing.T) { compareELF(t, im, b) })
		}
	}
	if n == 0 {
		t.Skip("there are none")
	}
}

// compareELF holds an image against what debug/elf reads of the file, and its fixups against the section headers, which Open
// does not look at.
func compareELF(t *testing.T, im *Image, file []byte) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	memory := make([]byte, im.Size)
	i := 0
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		sub := im.Subsections[i]
		i++
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil && p.Filesz > 0 {
			t.Fatal(err)
		}
		// The bytes around a segment are those around it in the file, up to whole pages; behind one with zeros there is nothing.
		at := p.Vaddr - im.Base
		if sub.RVA != at&^(PageSize-1) || sub.Size != pageCeil(at%PageSize+p.Memsz) {
			t.Errorf("a subsection at 0x%x+0x%x, the segment is at 0x%x+0x%x", sub.RVA, sub.Size, at, p.Memsz)
		}
		lead := at % PageSize
		copy(memory[sub.RVA:], file[p.Off-lead:p.Off])
		copy(memory[at:], b)
		if p.Memsz == p.Filesz {
			copy(memory[at+p.Filesz:sub.RVA+sub.Size], file[p.Off+p.Filesz:])
		}
		if x := sub.Access&Execute != 0; x != (p.Flags&elf.PF_X != 0) {
			t.Errorf("segment 0x%x: executable is %v", p.Vaddr, x)
		}
	}
	if !bytes.Equal(whole(t, im, file, 0), memory) {
		t.Error("where it was linked for, the memory is not the segments")
	}
	for page := range im.Size / PageSize {
		if p, ok := im.FilePage(page); ok {
			b := make([]byte, PageSize)
			copy(b, file[p*PageSize:])
			if !bytes.Equal(b, memory[page*PageSize:][:PageSize]) {
				t.Errorf("page %d is not the file's page %d", page, p)
			}
		}
	}

	const delta = 0x7f00_1111_0000
	relative := map[elf.Machine]uint32{elf.EM_X86_64: uint32(elf.R_X86_64_RELATIVE), elf.EM_AARCH64: uint32(elf.R_AARCH64_RELATIVE)}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_RELA || s.Flags&elf.SHF_ALLOC == 0 {
			continue
		}
		b, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		for ; len(b) >= 24; b = b[24:] {
			if uint32(le.Uint64(b[8:])) == relative[f.Machine] {
				le.PutUint64(memory[le.Uint64(b)-im.Base:], le.Uint64(b[16:])+delta)
			}
		}
	}
	for _, s := range f.Sections {
		if s.Type != 19 { // SHT_RELR
			continue
		}
		b, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		add := func(at uint64) {
			w := memory[at-im.Base:]
			le.PutUint64(w, le.Uint64(w)+delta)
		}
		for at := uint64(0); len(b) > 0; b = b[8:] {
			if v := le.Uint64(b); v&1 == 0 {
				add(v)
				at = v + 8
			} else {
				for j := range uint64(63) {
					if v>>(j+1)&1 != 0 {
						add(at + 8*j)
					}
				}
				at += 63 * 8
			}
		}
	}
	if f.Type == elf.ET_DYN && !bytes.Equal(whole(t, im, file, delta), memory) {
		t.Error("elsewhere, the memory is not the segments with their relative relocations")
	}
}

// TestPEInstalled reads the libraries that come with mingw-w64.
func TestPEInstalled(t *testing.T) {
	files, _ := filepath.Glob("/usr/lib/gcc/*-w64-mingw32/*/*.dll")
	if len(files) == 0 {
		t.Skip("there are none")
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(name), func(t *testing.T) {
			im := mustOpen(t, b)
			if yes, err := im.Relocatable(); !yes || err != nil || !im.DLL || !im.Code {
				t.Errorf("relocatable: %v, %v; %+v", yes, err, im)
			}
			comparePE(t, im, b)
			for _, err := range im.Fixups(bytes.NewReader(b), 0, im.Size) {
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
