package process

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// docTable is the rows of a table of docs/dep.md, which states the rules independently of the code.
func docTable(t *testing.T, name string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/dep.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "<!-- table: "+name+" -->\n")
	if !found {
		t.Fatalf("docs/dep.md has no table %s", name)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	for _, line := range strings.Split(table, "\n")[2:] {
		var row []string
		for _, cell := range strings.Split(strings.Trim(line, "| "), "|") {
			row = append(row, strings.TrimSpace(cell))
		}
		rows = append(rows, row)
	}
	return rows
}

// rule is the first row of a table that fits the facts, without them.
func rule(t *testing.T, table [][]string, facts ...string) []string {
	t.Helper()
next:
	for _, row := range table {
		for i, fact := range facts {
			if row[i] != "any" && row[i] != fact {
				continue next
			}
		}
		return row[len(facts):]
	}
	t.Fatalf("no rule for %v", facts)
	return nil
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

var bools = []bool{false, true}

// TestDEPMatrix: every policy, architecture, image flag and list, and in each state every protection touched in every way.
func TestDEPMatrix(t *testing.T) {
	cases := 0
	start := docTable(t, "start")
	for _, policy := range []Policy{AlwaysOff, AlwaysOn, OptIn, OptOut} {
		for _, arch := range []Arch{X64, X86, ARM64} {
			for _, nx := range bools {
				for _, system := range bools {
					for _, listed := range bools {
						r := rule(t, start, arch.String(), policy.String(), yes(nx), yes(system), yes(listed))
						on, permanent := r[0] == "on", r[1] == "yes"
						name := fmt.Sprintf("%v %v nxcompat=%v system=%v listed=%v", policy, arch, nx, system, listed)
						depCase(t, name, policy, Image{Name: "a.EXE", Arch: arch, NXCompat: nx, System: system}, listed, on, permanent)
						cases++
					}
				}
			}
		}
	}
	if cases != 4*3*8 {
		t.Errorf("%d cases", cases)
	}
}

func depCase(t *testing.T, name string, policy Policy, i Image, listed, on, permanent bool) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	m.SetPolicy(policy)
	m.SetOptIn("A.exe", listed && policy == OptIn)
	m.SetOptOut("A.exe", listed && policy == OptOut)
	p, err := m.Start(i)
	if err != nil {
		t.Fatal(err)
	}
	want := map[[2]bool]string{{true, true}: "DEP (permanent)", {true, false}: "DEP"}[[2]bool{on, permanent}]
	if p.DEP() != want {
		t.Errorf("%s: %q, want %q", name, p.DEP(), want)
	}
	touchAll(t, name, p, on)
	flags, fixed, err := p.DEPPolicy()
	if i.Arch != X86 {
		is(t, name+": get", err, NotSupported)
		is(t, name+": set", p.SetDEPPolicy(1), NotSupported)
		return
	}
	is(t, name+": get", err, nil)
	if (flags != 0) != on || fixed != permanent {
		t.Errorf("%s: flags %d permanent %v", name, flags, fixed)
	}
	setAll(t, name, m, i, p)
}

// setAll has the process, and then more of its kind, call SetProcessDEPPolicy with all flags, and looks what comes of it.
func setAll(t *testing.T, name string, m *machine, i Image, p *Process) {
	t.Helper()
	set := docTable(t, "set")
	for _, flags := range []uint32{0, 1, 2, 3, 4} {
		on := strings.HasPrefix(p.DEP(), "DEP")
		_, fixed, _ := p.DEPPolicy()
		r := rule(t, set, "32-bit", yes(fixed), fmt.Sprint(flags))
		err := p.SetDEPPolicy(flags)
		if code := Error(0); err != nil && !errors.As(err, &code) || fmt.Sprint(uint32(code)) != r[0] {
			t.Errorf("%s: flags %d: %v, want %s", name, flags, err, r[0])
		}
		if r[1] != "as before" {
			on, fixed = r[1] == "on", r[2] == "yes"
		}
		got, permanent, _ := p.DEPPolicy()
		if (got != 0) != on || permanent != fixed || err == nil && got != flags {
			t.Errorf("%s: after flags %d: %d, permanent %v", name, flags, got, permanent)
		}
		touchAll(t, fmt.Sprintf("%s after flags %d", name, flags), p, on)
		if err == nil && fixed {
			m.End(p)
			if p, err = m.Start(i); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// pageRules are the protections of private memory with what docs/dep.md says that they allow.
func pageRules(t *testing.T) map[Protection]string {
	all := make(map[Protection]string)
	for _, row := range docTable(t, "pages") {
		p, ok := ParseProtection(row[0])
		if !ok {
			t.Fatalf("%s is no protection", row[0])
		}
		all[p] = row[1]
	}
	if len(all) != 6 {
		t.Fatalf("%d protections", len(all))
	}
	return all
}

func touchAll(t *testing.T, name string, p *Process, dep bool) {
	t.Helper()
	base, err := p.Alloc(0, 0x1000, reserveCommit, ReadWrite)
	is(t, name+": alloc", err, nil)
	for prot, can := range pageRules(t) {
		_, err := p.Protect(base, 1, prot)
		is(t, name+": protect", err, nil)
		if prot != NoAccess {
			for _, k := range []Kind{Read, Write, Fetch} {
				_, err := p.Protect(base, 1, prot|Guard)
				is(t, name+": guard", err, nil)
				is(t, fmt.Sprintf("%s: %v of guarded %v", name, k, prot), touchOnce(p, k, base+5),
					&Exception{StatusGuardPageViolation, k, base + 5})
			}
		}
		for k, letter := range map[Kind]string{Read: "r", Write: "w", Fetch: map[bool]string{true: "x", false: "e"}[dep]} {
			var want error
			if !strings.Contains(can, letter) {
				kind := k
				if k == Fetch && !dep {
					kind = Read
				}
				want = &Exception{StatusAccessViolation, kind, base + 5}
			}
			before := p.Violations()
			is(t, fmt.Sprintf("%s: %v of %v", name, k, prot), touchOnce(p, k, base+5), want)
			if counted := p.Violations() - before; (counted == 1) != (k == Fetch && dep && want != nil) {
				t.Errorf("%s: %v of %v counted as %d violations", name, k, prot, counted)
			}
		}
	}
	is(t, name+": free", p.Free(base, 0, MemRelease), nil)
}

// touchOnce touches a byte.
func touchOnce(p *Process, k Kind, addr uint64) error {
	switch k {
	case Read:
		return p.Read(addr, make([]byte, 1))
	case Write:
		return p.Write(addr, []byte{1})
	}
	return p.Execute(addr)
}

func TestDEPFixedAtCreation(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X86, DEPFixed: true})
	is(t, "set", m.SetDEPPolicy(1), AccessDenied)
	if m.DEP() != "" {
		t.Errorf("DEP is %q", m.DEP())
	}
}

// TestThunks: with DEP on, an ATL thunk in data memory is emulated unless that is turned off.
func TestThunks(t *testing.T) {
	for flags, emulated := range map[uint32]bool{1: true, 3: false} {
		var told []uint64
		sys := newSystem(t, 64, 64)
		m := NewMachine(sys, OptIn, Listener{Violation: func(_ *Process, a uint64) { told = append(told, a) }})
		p, err := m.Start(Image{Arch: X86})
		is(t, "start", err, nil)
		is(t, "set", p.SetDEPPolicy(flags), nil)
		b, err := p.Alloc(0, 0x1000, reserveCommit, ReadWrite)
		is(t, "alloc", err, nil)
		is(t, "write", p.Write(b, []byte{0xC7, 0x44, 0x24, 0x04, 1, 2, 3, 4, 0xE9, 0, 0, 0, 0}), nil)
		is(t, "write", p.Write(b+0x100, []byte{0xC3}), nil)
		violation := func(a uint64) error { return &Exception{StatusAccessViolation, Fetch, a} }
		want, count := violation(b), 2
		if emulated {
			want, count = nil, 1
		}
		is(t, "thunk", p.Execute(b), want)
		is(t, "other code", p.Execute(b+0x100), violation(b+0x100))
		is(t, "code in free memory", p.Execute(0x70000000), violation(0x70000000))
		if len(told) != count || m.Violations() != uint64(count) {
			t.Errorf("flags %d: told of %x, counted %d, want %d", flags, told, m.Violations(), count)
		}
		m.End(p)
		if err := sys.Close(); err != nil {
			t.Error(err)
		}
	}
}
