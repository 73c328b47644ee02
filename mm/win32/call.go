package win32

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"memfs/mm/process"
)

// Row is one call of the table.
type Row struct {
	Name string
	// Params are the names of the parameters, in order. A name says what it takes by how it ends: "…?" may be left out,
	// "…..." takes all that are left, "…=hex" is bytes, "…=string" is text, "…=process" is a process's name; all others are
	// numbers.
	Params string
	Help   string
	Do     func(c *Call) error
	// ReturnsError says that the call returns its error instead of setting the last one.
	ReturnsError bool
}

type row struct {
	name         string
	params       []param
	do           func(c *Call) error
	help         string
	returnsError bool
}

type param struct {
	name     string
	kind     string // "", "hex", "string", "process"
	optional bool
	rest     bool
}

var table = make(map[string]*row)

// Register adds calls to the language. It panics on a name that there is already. It is called from init functions.
func Register(rows ...Row) {
	for _, r := range rows {
		if table[r.Name] != nil {
			panic("win32: call " + r.Name + " registered twice")
		}
		n := &row{name: r.Name, do: r.Do, help: r.Help, returnsError: r.ReturnsError}
		for _, f := range strings.Fields(r.Params) {
			var p param
			f, p.optional = strings.CutSuffix(f, "?")
			f, p.rest = strings.CutSuffix(f, "...")
			p.name, p.kind, _ = strings.Cut(f, "=")
			n.params = append(n.params, p)
		}
		table[r.Name] = n
	}
}

// lookUp finds a call. One that takes or returns text has an A or a W at the end in the headers, and may here.
func lookUp(name string) *row {
	if r := table[name]; r != nil {
		return r
	}
	n := len(name) - 1
	if n < 1 || name[n] != 'A' && name[n] != 'W' {
		return nil
	}
	r := table[name[:n]]
	if r == nil || r.name != "GetMappedFileName" && !slices.ContainsFunc(r.params, func(p param) bool { return p.kind == "string" }) {
		return nil
	}
	return r
}

// Help lists the calls with their parameters, one a line.
func Help() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(table)) {
		r := table[name]
		b.WriteString(name)
		for _, p := range r.params {
			switch {
			case p.rest:
				fmt.Fprintf(&b, " %s...", p.name)
			case p.optional:
				fmt.Fprintf(&b, " [%s]", p.name)
			default:
				fmt.Fprintf(&b, " %s", p.name)
			}
		}
		fmt.Fprintf(&b, "    %s\n", r.help)
	}
	return b.String()
}

// Call is one call under way: its arguments, and the reply as it is made.
type Call struct {
	Session *Session
	Process *process.Process // the caller

	thread uint32 // of the caller's; 0 is the main one
	peer   *peer
	row    *row
	args   map[string]argument
	rest   []uint64
	null   bool
	left   bool // a last error, though the call did not fail
	result uint64
	out    []field
}

type argument struct {
	number  uint64
	text    string
	bytes   []byte
	process *process.Process
}

type field struct {
	name  string
	value any
}

// bind evaluates the arguments.
func (c *Call) bind(args []token) error {
	if n := len(args); n > 0 && !args[n-1].quoted && strings.HasPrefix(args[n-1].text, "NULL") && c.pointer(n-1) {
		c.null, args = true, args[:n-1]
	}
	c.args = make(map[string]argument)
	for _, p := range c.row.params {
		if p.rest {
			for _, a := range args {
				v, err := c.evaluate(param{name: p.name}, a)
				if err != nil {
					return err
				}
				c.rest = append(c.rest, v.number)
			}
			return nil
		}
		if len(args) == 0 {
			if p.optional {
				break
			}
			return syntaxf("%s wants %s", c.row.name, p.name)
		}
		v, err := c.evaluate(p, args[0])
		if err != nil {
			return err
		}
		c.args[p.name] = v
		args = args[1:]
	}
	if len(args) > 0 {
		return syntaxf("%s takes no %q", c.row.name, args[0].text)
	}
	return nil
}

// pointer says whether a NULL as argument i stands for an out-parameter: there is no parameter for it, or one that may be
// left out and is no handle.
func (c *Call) pointer(i int) bool {
	for _, p := range c.row.params[:min(i, len(c.row.params))] {
		if p.rest {
			return false
		}
	}
	if i >= len(c.row.params) {
		return true
	}
	p := c.row.params[i]
	return p.optional && p.kind != "process" && !p.rest
}

func (c *Call) evaluate(p param, t token) (a argument, err error) {
	switch {
	case p.kind == "hex":
		if a.bytes, err = hex.DecodeString(t.text); err != nil {
			return a, syntaxf("%s wants bytes in hexadecimal, two digits each", p.name)
		}
		return a, nil
	case p.kind == "string" && t.quoted:
		a.text = t.text
		return a, nil
	case t.quoted:
		return a, syntaxf("%s wants a number, not a string", p.name)
	case p.kind == "process":
		return c.processArgument(t.text)
	}
	a.number, err = number(t.text, func(name string) (uint64, bool) { return c.Session.variable(c.peer, name) })
	return a, err
}

// processArgument is a process handle: SELF or −1, which is the same, the name of a process, or NULL or another number, which
// no process has.
func (c *Call) processArgument(name string) (a argument, err error) {
	if n, err := Evaluate(name, nil); err == nil {
		if process.Handle(n) == process.NoHandle || n == 0xFFFFFFFF && c.Process.Image().Arch.Pointer() == 4 {
			a.process = c.Process
		}
		a.number = n
		return a, nil
	}
	if !isName(strings.Map(plain, name)) {
		return a, syntaxf("%q is no process", name)
	}
	p, err := c.Session.peer(name)
	if err == nil {
		a.process = p.process
	}
	return a, err
}

// plain leaves out what the name of a folder may have, and that of a variable may not.
func plain(r rune) rune {
	if strings.ContainsRune("@.,=-", r) {
		return '_'
	}
	return r
}

// Number is an argument's value, 0 if it was left out.
func (c *Call) Number(name string) uint64 { return c.args[name].number }

// Bytes is the value of a parameter of kind hex.
func (c *Call) Bytes(name string) []byte { return c.args[name].bytes }

// Text is the value of a parameter of kind string; a number there, such as 0, is the empty string.
func (c *Call) Text(name string) string { return c.args[name].text }

// Given says whether an optional argument was given.
func (c *Call) Given(name string) bool { _, ok := c.args[name]; return ok }

// Flags is an argument of 32 bits: ok is false if it has more.
func (c *Call) Flags(name string) (uint32, bool) {
	n := c.Number(name)
	return uint32(n), n>>32 == 0
}

// Rest is the arguments of a parameter that takes all that are left.
func (c *Call) Rest() []uint64 { return c.rest }

// Null says that the out-parameter, or the last one of several, was NULL.
func (c *Call) Null() bool { return c.null }

// Other is the value of a parameter of kind process; InvalidHandle for NULL.
func (c *Call) Other(name string) (*process.Process, error) {
	if p := c.args[name].process; p != nil {
		return p, nil
	}
	return nil, process.InvalidHandle
}

// Return sets the result.
func (c *Call) Return(n uint64) { c.result = n }

// leave sets the last error of a call that need not fail.
func (c *Call) leave(e process.Error) {
	c.Process.SetLastError(e)
	c.left = true
}

// Set adds a field to the reply.
func (c *Call) Set(name string, value any) { c.out = append(c.out, field{name, value}) }

// SetHex adds a field shown in hexadecimal; 0 is 0.
func (c *Call) SetHex(name string, n uint64) {
	if n == 0 {
		c.Set(name, 0)
		return
	}
	c.Set(name, fmt.Sprintf("0x%x", n))
}

// SetBool adds a field shown as 0 or 1.
func (c *Call) SetBool(name string, b bool) {
	if b {
		c.Set(name, 1)
	} else {
		c.Set(name, 0)
	}
}

// Value is what a package keeps with the caller's process under a key of its own, such as its table of handles; made at the
// first use.
func (c *Call) Value(key any, first func() any) any {
	c.Session.mu.Lock()
	defer c.Session.mu.Unlock()
	v, ok := c.peer.values[key]
	if !ok {
		v = first()
		c.peer.values[key] = v
	}
	return v
}
