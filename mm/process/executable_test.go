package process

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"memfs/mapping/image/pefile"
)

// program is an executable file of two sections.
func program(machine, chars uint16) []byte {
	return pefile.PE{
		Machine: machine, Characteristics: chars, Base: 0x400000, DLLChars: 0x140, Entry: 0x1000,
		Sections: []pefile.Section{
			{Chars: pefile.Read | pefile.Execute, Data: bytes.Repeat([]byte{0xc3}, 0x1800)},
			{Chars: pefile.Read | pefile.Write, Data: []byte("data"), Virtual: 0x2000},
		},
		StackReserve: 0x40000, StackCommit: 0x5000, HeapReserve: 0x180000, HeapCommit: 0x4000,
	}.Bytes()
}

// TestProgramSizes: stacks and the default heap are as large as the header says.
func TestProgramSizes(t *testing.T) {
	m := newMachine(t, 512, 512, Image{Arch: X64})
	m.withFiles(map[string][]byte{"/app.exe": program(0x8664, 0x22)})
	p, err := m.StartProgram(m.Process, Image{Name: "app.exe", Executable: `\app.exe`})
	is(t, "start", err, nil)
	threads := p.Threads()
	if len(threads) != 1 || threads[0].Top-threads[0].Bottom != 0x40000 {
		t.Fatalf("threads are %x", threads)
	}
	for _, c := range []struct {
		at      uint64
		state   State
		protect Protection
		size    uint64
	}{
		{threads[0].Bottom, StateReserve, 0, 0x40000 - 0x6000}, {threads[0].Top - 0x6000, StateCommit, ReadWrite | Guard, 0x1000},
		{threads[0].Top - 0x5000, StateCommit, ReadWrite, 0x5000},
	} {
		if r, _ := p.Query(c.at); r.State != c.state || r.Protect != c.protect || r.RegionSize != c.size {
			t.Errorf("at 0x%x the stack is %+v", c.at, r)
		}
	}
	_, err = p.Heaps()
	is(t, "default heap", err, nil)
	if r, _ := p.Allocation(X64.defaultHeapBase()); r.RegionSize != 0x180000 {
		t.Errorf("the default heap is %+v", r)
	}
	other, err := p.NewThread(0)
	is(t, "another thread", err, nil)
	if other.Top-other.Bottom != 0x40000 {
		t.Errorf("its stack is %x", other)
	}
	_, err = p.NewThread(^uint64(0))
	is(t, "a stack as large as everything", err, NotEnoughMemory)
	run := p.Program()
	if run == nil || run.Path != "/app.exe" || run.Entry != run.Base+0x1000 || p.Image().HeapCommit != 0x4000 {
		t.Errorf("it runs %+v", run)
	}
	again, err := m.StartProgram(p, Image{Executable: "/app.exe"})
	is(t, "start again", err, nil)
	if again.Program().Base != run.Base {
		t.Errorf("one process has the image at 0x%x, another at 0x%x", run.Base, again.Program().Base)
	}
}

// TestDamagedPrograms: whatever a program's header says, a process starts or it does not, and nothing is left.
func TestDamagedPrograms(t *testing.T) {
	m := newMachine(t, 1024, 1024, Image{Arch: X64})
	sound := map[string][]byte{"/x64": program(0x8664, 0x22), "/x86": program(0x14c, 0x103), "/laa": program(0x14c, 0x123), "/arm": program(0xaa64, 0x22)}
	m.withFiles(sound)
	files := m.files.(*imageFiles)
	before := m.sys.Snapshot().Commit
	rng := rand.New(rand.NewPCG(3, 4))
	started, refused := 0, 0
	for i := range 3000 {
		path := []string{"/x64", "/x86", "/laa", "/arm"}[i%4]
		b := bytes.Clone(sound[path])
		for range 1 + rng.IntN(3) {
			at := 0x40 + rng.IntN(0x180)
			switch rng.IntN(3) {
			case 0:
				b[at] ^= 1 << rng.IntN(8)
			case 1:
				b[at] = 0xff
			case 2:
				copy(b[at:], []byte{0xff, 0xff, 0xff, 0x7f}[rng.IntN(4):])
			}
		}
		is(t, "write", files.byPath[path].seg.Store(0, b), nil)
		p, err := m.StartProgram(m.Process, Image{Executable: path})
		if err != nil {
			refused++
			if !errors.As(err, new(Error)) {
				t.Fatalf("%x: %v", b[0x40:0x1c0], err)
			}
			continue
		}
		started++
		_, _ = p.Heaps()
		_ = p.Execute(p.Program().Entry)
		_ = p.Read(p.Program().Base, make([]byte, 0x3000))
		if errs := m.Check(); len(errs) > 0 {
			t.Fatalf("%x: %v", b[0x40:0x1c0], errs)
		}
		m.End(p)
	}
	t.Logf("%d started, %d were refused", started, refused)
	if started < 100 || refused < 100 {
		t.Errorf("%d started, %d were refused: the test says little", started, refused)
	}
	if after := m.sys.Snapshot().Commit; after > before+8 {
		t.Errorf("%d pages are committed, were %d", after, before)
	}
}
