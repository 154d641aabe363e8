# Makes a virtual USB device and plugs it into a virtual controller of the same machine.
# NAME, VENDOR, PRODUCT, MAKER, MODEL, SERIAL, FUNCTION (the kernel's name for what it does), SETTINGS (attributes of the
# function, as FILE=VALUE), CONTROLLER, REPORTS (what describes the reports of an input device, for `printf`)
modprobe -a configfs libcomposite || exit 1
[ -e /sys/bus/platform/drivers/dummy_hcd ] || modprobe dummy_hcd num=2 || exit 1
[ -d /sys/kernel/config/usb_gadget ] || mount -t configfs none /sys/kernel/config || exit 1
set -e
gadget=/sys/kernel/config/usb_gadget/$NAME
mkdir "$gadget"
cd "$gadget"
echo "$VENDOR" >idVendor
echo "$PRODUCT" >idProduct
echo 0x0200 >bcdUSB
mkdir strings/0x409 configs/c.1 "functions/$FUNCTION.0"
echo "$MAKER" >strings/0x409/manufacturer
echo "$MODEL" >strings/0x409/product
echo "$SERIAL" >strings/0x409/serialnumber
for setting in $SETTINGS; do
    echo "${setting#*=}" >"functions/$FUNCTION.0/${setting%%=*}"
done
[ -z "$REPORTS" ] || printf "$REPORTS" >"functions/$FUNCTION.0/report_desc"
ln -s "functions/$FUNCTION.0" configs/c.1
echo "dummy_udc.$CONTROLLER" >UDC
