package mapping_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"memfs/mapping"
	"memfs/mm"
)

// ruleMachine is a machine of 512 frames and files of a given number of pages on it.
type ruleMachine struct {
	t     *testing.T
	sys   *mm.System
	files []*host
}

func newRuleMachine(t *testing.T) *ruleMachine {
	m := &ruleMachine{t: t, sys: config{frames: 512, host: 200, slots: 8192}.start(t)}
	t.Cleanup(func() {
		check(t, m.sys)
		for _, h := range m.files {
			h.section.Delete()
		}
		if err := m.sys.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// file makes a file of n pages, page i of which is full of byte i.
func (m *ruleMachine) file(n int) *host {
	m.t.Helper()
	h := &host{pages: make(map[int64]*hostPage)}
	h.section = mapping.NewSection(m.sys, h)
	m.files = append(m.files, h)
	for i := range n {
		if i%64 == 0 {
			must(m.t, m.sys.TrimAll)
		}
		h.direct(m.t, int64(i)*page, bytes.Repeat([]byte{byte(i)}, page))
	}
	return h
}

// pressure reads more through memory than it holds.
func (m *ruleMachine) pressure(big *host) {
	m.t.Helper()
	for i := range bigPages {
		if i%64 == 0 {
			must(m.t, m.sys.TrimAll)
		}
		big.read(m.t, int64(i)*page, page)
	}
}

const bigPages = 1500

func (m *ruleMachine) set(h *host, r mm.Rule) (read uint64) {
	m.t.Helper()
	read, err := h.section.SetRule(r)
	if err != nil {
		m.t.Fatalf("rule %+v: %v", r, err)
	}
	check(m.t, m.sys)
	return read
}

// leave has everything leave memory that may. The daemons may have a view or a page in hand: it tries again.
func (m *ruleMachine) leave() {
	m.t.Helper()
	for range 200 {
		must(m.t, m.sys.TrimAll)
		must(m.t, m.sys.FlushModified)
		m.sys.EmptyStandby()
		n := m.sys.Snapshot()
		if kept, _ := m.sys.Resident(); n.Active+n.Modified+n.Transition+n.ModifiedNoWrite <= kept+n.RecordFrames {
			break
		}
		time.Sleep(time.Millisecond)
	}
	check(m.t, m.sys)
}

func (m *ruleMachine) verify(h *host, pages int) {
	m.t.Helper()
	for i := range pages {
		if got := h.read(m.t, int64(i)*page, page); !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, page)) {
			m.t.Fatalf("page %d holds other bytes", i)
		}
	}
}

// TestResident: the pages of a file that is not to be swapped, or pinned, come back from the page file, stay in memory
// whatever else wants it, and may leave again when the rule is lifted.
func TestResident(t *testing.T) {
	for name, rule := range map[string]mm.Rule{"noswap": {Priority: 5, NoSwap: true}, "pinned": {Priority: 5, Pinned: true}} {
		t.Run(name, func(t *testing.T) {
			m := newRuleMachine(t)
			m.sys.Start()
			const pages = 100
			big, h := m.file(bigPages), m.file(pages)
			m.leave()
			if got := h.section.Info(); got.Paged != pages {
				t.Fatalf("the test needs all pages paged out: %+v", got)
			}
			if read := m.set(h, rule); read != pages {
				t.Errorf("%d pages were read back, want %d", read, pages)
			}
			if n, most := m.sys.Resident(); n != pages || most != 256 {
				t.Errorf("%d of %d pages are booked, want %d of 256", n, most, pages)
			}
			m.pressure(big)
			m.leave()
			h.direct(t, pages*page, bytes.Repeat([]byte{pages}, page)) // one more page follows the rule
			m.leave()
			got := h.section.Info()
			if got.Paged != 0 || got.Standby != 0 || got.Modified != 0 && name == "pinned" || name == "pinned" && got.Active != pages+1 {
				t.Errorf("pages left memory: %+v", got)
			}
			before := m.sys.Snapshot().Counters.HardFaults
			m.verify(h, pages+1)
			if after := m.sys.Snapshot().Counters.HardFaults; after != before {
				t.Errorf("reading them back took %d hard faults", after-before)
			}
			m.set(h, mm.DefaultRule())
			m.leave()
			if got := h.section.Info(); got.Paged != pages+1 {
				t.Errorf("after the rule was lifted and memory emptied: %+v", got)
			}
			if n, _ := m.sys.Resident(); n != 0 {
				t.Errorf("%d pages are still booked", n)
			}
			m.verify(h, pages+1)
		})
	}
}

// TestResidentLimit: what cannot stay in memory is refused, and everything is as before.
func TestResidentLimit(t *testing.T) {
	m := newRuleMachine(t)
	m.sys.Start()
	huge, small, big := m.file(bigPages), m.file(200), m.file(300)
	if _, err := big.section.SetRule(mm.Rule{Pinned: true}); !errors.Is(err, mm.StatusWorkingSetQuota) {
		t.Fatalf("pinning 300 pages of 512 frames: %v", err)
	}
	m.set(small, mm.Rule{NoSwap: true})
	err := small.section.Write(200*page, make([]byte, 100*page))
	if !errors.Is(err, mm.StatusCommitmentLimit) {
		t.Errorf("growing a file that may not be swapped past half of memory: %v", err)
	}
	if err := small.section.Allocate(0, 300*page, true); !errors.Is(err, mm.StatusCommitmentLimit) {
		t.Errorf("the same by fallocate: %v", err)
	}
	if _, err := small.section.SetRule(mm.Rule{Priority: 8}); !errors.Is(err, mm.StatusInvalidParameter) {
		t.Errorf("priority 8: %v", err)
	}
	m.pressure(huge)
	if got := big.section.Rule(); got != mm.DefaultRule() {
		t.Errorf("the refused rule is in force: %+v", got)
	}
	m.verify(small, 200)
	m.verify(big, 300)
	if err := small.section.Punch(0, 100*page); err != nil {
		t.Fatal(err)
	}
	if n, _ := m.sys.Resident(); n != 100 {
		t.Errorf("%d pages are booked after half of 200 were punched", n)
	}
}

// TestPriority: of what waits on Standby, the pages of a lower priority go first. No daemon runs, so that nothing but the
// order of the lists decides.
func TestPriority(t *testing.T) {
	m := newRuleMachine(t)
	const pages = 100
	big := m.file(bigPages)
	m.leave()
	low, high := m.file(pages), m.file(pages)
	m.set(low, mm.Rule{Priority: 1})
	m.set(high, mm.Rule{Priority: 7})
	must(t, m.sys.TrimAll)
	must(t, m.sys.FlushModified)
	m.pressure(big)
	if l, h := low.section.Info(), high.section.Info(); l.Standby != 0 || h.Standby != pages {
		t.Errorf("on Standby after the pressure: %d pages of priority 1, %d of priority 7; want none and all", l.Standby, h.Standby)
	}
	if n := m.sys.Snapshot().Counters.Repurposed; n[1] < pages || n[7] != 0 {
		t.Errorf("repurposed by priority: %v", n)
	}
}
