package mapping_test

import (
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/store"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write what the scripts of testdata answer beside them")

// scripted is a machine that obeys a script, with the daemons' work done by steps.
type scripted struct {
	t       *testing.T
	c       config
	s       *mm.System
	files   map[string]*mapping.Section
	answers strings.Builder
	after   func(line string) // each command; may be nil
}

// TestScripts runs the scripts of testdata on machines of 16 to 16384 frames, with a page file, an encrypted one, one whose
// disk fails writes, and with compressed memory, on one and on all processors. Every machine has the same answers.
func TestScripts(t *testing.T) {
	names, err := filepath.Glob("testdata/*.script")
	if err != nil || len(names) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, name := range names {
		golden := strings.TrimSuffix(name, ".script") + ".answers"
		want, _ := os.ReadFile(golden)
		for _, frames := range []uint64{16, 64, 1024, 16384} {
			for _, kind := range []string{"page file", "encrypted", "compressed", "flaky"} {
				for _, processors := range []int{1, runtime.NumCPU()} {
					switch {
					case kind == "compressed" && frames < 64, kind == "flaky" && frames < 1024:
						continue // no room for it, or for the pages that could not be written
					case frames > 10000 && kind != "page file", testing.Short() && (processors == 1 || frames == 64 || frames > 10000):
						continue // nothing new
					}
					t.Run(fmt.Sprintf("%s/%d frames/%s/%d", filepath.Base(name), frames, kind, processors), func(t *testing.T) {
						defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
						m := newScripted(t, frames, kind)
						m.run(name)
						m.close()
						if got := m.answers.String(); *update {
							want = []byte(got)
							_ = os.WriteFile(golden, want, 0o644)
						} else if got != string(want) {
							t.Errorf("answers\n%swant\n%s", got, want)
						}
					})
				}
			}
		}
	}
}

func newScripted(t *testing.T, frames uint64, kind string) *scripted {
	t.Helper()
	m := &scripted{t: t, files: make(map[string]*mapping.Section)}
	m.c = config{frames: frames, host: max(8, frames/3), slots: 4096, encrypt: kind == "encrypted"}
	cfg := mm.Config{MaxMemory: most * frames * 2 * page, Encrypt: m.c.encrypt, Patience: 5 * time.Second}
	var disk mm.Store = store.NewMem()
	if kind == "flaky" {
		disk = store.NewFlaky(disk, 7, store.Fault{Kind: store.Fail, Ops: store.OpWrite, Errno: unix.EIO, Rate: 0.2})
	}
	cfg.PageFiles = []mm.PageFileConfig{{Name: "test", Store: disk, Max: m.c.slots}}
	if kind == "compressed" {
		z, err := store.NewCompressed("s2", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Compressed = &mm.CompressedConfig{Store: z, Limit: frames * page / 8, Slots: 1000}
	}
	b := m.c.budget(frames)
	cfg.Memory = b.Memory
	s, err := mm.NewFromBudget(b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.s = s
	return m
}

func (m *scripted) close() {
	m.t.Helper()
	for _, f := range m.files {
		f.Delete()
	}
	if err := m.s.Close(); err != nil {
		m.t.Error(err)
	}
}

// run runs a script, and proves every invariant after each command.
func (m *scripted) run(name string) {
	m.t.Helper()
	script, err := os.ReadFile(name)
	if err != nil {
		m.t.Fatal(err)
	}
	for n, line := range strings.Split(string(script), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		if err := m.command(strings.Fields(line)); err != nil {
			m.t.Fatalf("%s:%d: %s: %v", name, n+1, line, err)
		}
		if err := errors.Join(m.s.Check()...); err != nil {
			m.t.Fatalf("%s:%d: %s: %v", name, n+1, line, err)
		}
		if m.after != nil {
			m.after(line)
		}
	}
}

// file is a file by name, which is made if need be. Nothing of it is cached by the host but what the section thinks.
func (m *scripted) file(name string) *mapping.Section {
	if m.files[name] == nil {
		m.files[name] = mapping.NewSection(m.s, nullHost{})
	}
	return m.files[name]
}

func (m *scripted) say(format string, args ...any) { fmt.Fprintf(&m.answers, format+"\n", args...) }

func (m *scripted) command(w []string) (err error) {
	number := func(i int) (n int64) {
		if _, e := fmt.Sscan(w[i], &n); e != nil {
			err = e
		}
		return n
	}
	switch w[0] {
	case "write":
		data := make([]byte, number(3))
		r := rand.New(rand.NewPCG(uint64(number(4)), 0))
		for i := range data {
			if data[i] = byte(i >> 12); i%3 == 0 { // compresses, and each page is another one's only by the seed
				data[i] = byte(r.Uint32())
			}
		}
		return errors.Join(err, m.file(w[1]).Write(number(2), data))
	case "read", "sum":
		f := m.file(w[1])
		off, n := int64(0), f.Size()
		if w[0] == "read" {
			off, n = number(2), number(3)
		}
		sum, e := checksum(f, off, n)
		m.say("%s %08x", strings.Join(w, " "), sum)
		return errors.Join(err, e)
	case "size":
		m.say("size %s %d", w[1], m.file(w[1]).Size())
		return nil
	case "truncate":
		return m.file(w[1]).Truncate(number(2))
	case "punch":
		return m.file(w[1]).Punch(number(2), number(3))
	case "prefetch":
		_, err = m.file(w[1]).Prefetch(0, m.file(w[1]).Size())
		return err
	case "rule":
		r := mm.DefaultRule()
		r.Priority = uint8(number(3))
		_, err = m.file(w[1]).SetRule(r)
		return err
	case "trim":
		_, err = m.s.TrimAll()
		return err
	case "flush": // until the disk, which may fail, has taken everything
		for range 100 {
			if _, err = m.s.FlushModified(); err == nil {
				return nil
			}
		}
		return err
	case "empty":
		m.s.EmptyStandby()
		return nil
	case "combine":
		_, err = m.s.Combine()
		return err
	case "step":
		m.s.BalanceStep()
		m.s.TrimStep()
		_, _ = m.s.WriteStep()
		m.s.ZeroStep()
		return nil
	case "double", "back":
		frames := m.c.frames
		if w[0] == "double" {
			frames *= 2
		}
		_, err = m.s.Resize(m.c.budget(frames))
		return err
	case "more":
		_, err = m.s.AddPageFile(mm.PageFileConfig{Name: "more", Store: store.NewMem(), Max: 512, Priority: 1})
		return err
	case "less":
		_, err = m.s.RemovePageFile(0)
		return err
	}
	return errors.New("unknown")
}

// checksum is that of what a file reads as.
func checksum(f *mapping.Section, off, n int64) (sum uint32, err error) {
	for n > 0 {
		k := int(min(n, 5*page))
		set, err := f.Read(off, k, make([]byte, k))
		if err != nil || set == nil {
			return sum, err
		}
		for _, b := range set.Slices() {
			sum = crc32.Update(sum, crc32.IEEETable, b)
		}
		set.Done()
		off, n = off+int64(k), n-int64(k)
	}
	return sum, nil
}

// TestSameEvictions: the daemons are steps, so the same script on the same machine evicts the same pages, every time.
func TestSameEvictions(t *testing.T) {
	trace := func(frames uint64, kind string) string {
		m := newScripted(t, frames, kind)
		var b strings.Builder
		m.after = func(line string) {
			fmt.Fprintln(&b, line)
			for _, name := range []string{"a", "b", "c", "d"} {
				f := m.files[name]
				if f == nil {
					continue
				}
				f.EachPage(0, 1000, func(p mm.PageInfo) bool {
					fmt.Fprintf(&b, "%d%c%d,%d ", p.Index, p.State, p.Frame, p.Slot)
					return true
				})
				fmt.Fprintln(&b)
			}
			fmt.Fprintln(&b, m.s.Snapshot().Counters.Repurposed)
		}
		m.run("testdata/thrash.script")
		m.close()
		return b.String()
	}
	for _, kind := range []string{"page file", "encrypted", "compressed"} {
		first := trace(64, kind)
		if !strings.Contains(first, "P-1,") {
			t.Errorf("%s: nothing was evicted", kind)
		}
		for range 3 {
			if again := trace(64, kind); again != first {
				t.Fatalf("%s: another run has evicted other pages: %s", kind, firstDifference([]byte(again), []byte(first)))
			}
		}
	}
}
