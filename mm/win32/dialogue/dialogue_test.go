package dialogue

import (
	"strconv"
	"strings"
	"testing"
)

// number is a Number for tests: a number or a variable.
func number(s string, variable func(string) (uint64, bool)) (uint64, error) {
	if name, ok := strings.CutPrefix(s, "$"); ok && variable != nil {
		if n, ok := variable(name); ok {
			return n, nil
		}
	}
	return strconv.ParseUint(s, 0, 64)
}

func TestDifferences(t *testing.T) {
	for _, c := range []struct {
		reply, want string
		differs     bool
	}{
		{"OK 0x1000", "OK", false},
		{"OK 0x1000", "ERR *", true},
		{"ERR 87 ERROR_INVALID_PARAMETER", "", true},
		{"EXC 0xC0000005 read 0x1000", "", true},
		{"OK 0x1000", "", false},
		{"ERR 87 ERROR_INVALID_PARAMETER", "ERR *", false},
		{"ERR 87 ERROR_INVALID_PARAMETER", "ERR 0x57", false},
		{"ERR 87 ERROR_INVALID_PARAMETER", "ERR 88", true},
		{"ERR 87 ERROR_INVALID_PARAMETER", "ERR 87 ERROR_INVALID_ADDRESS", true},
		{"EXC 0xC0000005 read 0x1000", "EXC 0xC0000005 read 4096", false},
		{"EXC 0xC0000005 read 0x1000", "EXC 0xC0000005 write 0x1000", true},
		{"EXC 0xC0000005", "EXC 0xC0000005 read", true},
		{"OK 0x1000 Size=16", "OK Size=0x10 Result=4096", false},
		{"OK 0x1000 Size=16", "OK Size=17", true},
		{"OK 0x1000 Size=16", "OK Size>=17", true},
		{"OK 0x1000 Size=16", "OK Size<=17 Size!=3", false},
		{"OK 0x1000 Size=16", "OK Size!=16", true},
		{"OK 0x1000", "OK Size=16", true},
		{"OK 0x12000", "OK Align=0x1000", false},
		{"OK 0x12000", "OK Align=0x10000", true},
		{"OK 0x12008", "OK Handle=1", false},
		{"OK 0x12000", "OK Handle=1", true},
		{"OK 0x12008", "OK ResultMask=~0x7 Result=1", true},
		{"OK 0x1 data=00ff", "OK data=00ff", false},
		{"OK 0x1 data=00", "OK data=0", true},
		{"OK 0x1 data=01", "OK data=any(00,01)", false},
		{"OK 0x1 data=02", "OK data=any(00,01)", true},
		{"OK 0x1 Pages=0x1000,0x2000", "OK Pages=$r,8192", false},
		{"OK 0x1 Pages=0x1000", "OK Pages=$r,8192", true},
		{"OK 0x1 Odd=1", "OK Odd?1", true},
		{"ERR 8 ERROR_NOT_ENOUGH_MEMORY Result=0", "OK Result=0", false},
		{"ERR 8 ERROR_NOT_ENOUGH_MEMORY Result=0", "OK Result=1", true},
		{"ERR 8 ERROR_NOT_ENOUGH_MEMORY Result=0", "OK", true},
		{"ERR 8 ERROR_NOT_ENOUGH_MEMORY Result=0", "ERR 8 ERROR_NOT_ENOUGH_MEMORY Result=0", false},
		{"ERR 8 ERROR_NOT_ENOUGH_MEMORY Result=0", "ERR 8 ERROR_NOT_ENOUGH_MEMORY Result=1", true},
		{"", "OK", true},
	} {
		p := &Player{Number: number, variables: map[string]map[string]uint64{"": {"r": 0x1000}}}
		why, err := p.differs("", "", c.reply, c.want)
		if err != nil || (why != "") != c.differs {
			t.Errorf("%q against %q: %q, %v", c.reply, c.want, why, err)
		}
	}
}

func TestPlay(t *testing.T) {
	const text = `
first = Call -> OK Result=7
# a comment
# scenario: second [arch=x86] [dep: off] [source: nowhere]
repeat i=0x10..0x30 step=0x10: Write $i+$r 00 -> OK
repeat 2: Ping -> OK LastError=5
P2: x = Call -> OK Result=$x
`
	all := Parse(text)
	if len(all) != 2 || all[0].Name != "" || all[1].Name != "second" || all[1].Tags["arch"] != "x86" || all[1].Tags["dep"] != "off" {
		t.Fatalf("scenarios are %+v", all)
	}
	var lines []string
	p := &Player{Number: number, Execute: func(line string) (string, error) {
		lines = append(lines, line)
		if line == "GetLastError" {
			return "OK 0x5", nil
		}
		return "OK 0x7", nil
	}}
	for _, s := range all {
		err := p.Play(s, func(s Step) bool {
			if s.Difference != "" {
				t.Errorf("line %d: %s: %s", s.Line, s.Call, s.Difference)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var calls []string
	for _, l := range lines {
		if !strings.Contains(l, "SetLastError") {
			calls = append(calls, l)
		}
	}
	want := "first = Call|Write 0x10+$r 00|Write 0x20+$r 00|Write 0x30+$r 00|Ping|GetLastError|Ping|GetLastError|P2: x = Call"
	if got := strings.Join(calls, "|"); got != want {
		t.Errorf("played\n%s, want\n%s", got, want)
	}
	if lines[len(lines)-2] != "P2: SetLastError 0xdeadbeef" {
		t.Errorf("before a line of another process came %q", lines[len(lines)-2])
	}
	if err := p.Play(&Scenario{Lines: []Line{{1, `file "/x" size=1`}}}, func(Step) bool { return true }); err == nil {
		t.Error("a file was made by a player that cannot")
	}
	if err := p.Play(&Scenario{Lines: []Line{{1, "repeat i=0..0xffffffffffffffff: Ping"}}}, func(Step) bool { return true }); err == nil {
		t.Error("an endless repeat")
	}
}
